// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// Watchdog pings the watchdog of the service manager until ctx ends, twice in each of its periods, as long as alive returns
// nil. While alive returns an error, or does not return at all, there is no ping, and the service manager ends the daemon when
// the period is over; so alive asks whatever must not be stuck, and is content with an answer. It is called from one other
// goroutine at a time, and one that is still stuck when ctx ends is not waited for.
//
// Without a watchdog it returns nil at once and calls nothing. What goes wrong is logged once for each time that it begins.
func Watchdog(ctx context.Context, log *zap.Logger, alive func() error) error {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the period of the watchdog: %w", err)
	}
	if period == 0 {
		return nil
	}
	watch(ctx, period/2, alive, func() error { return notify(daemon.SdNotifyWatchdog) }, log)
	return nil
}

// watch calls alive and after its nil ping, at once and then at every tick, unless the last such call has not returned.
func watch(ctx context.Context, every time.Duration, alive, ping func() error, log *zap.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	answers := make(chan error, 1) // One call at a time, so an answer that nobody waits for any more has room.
	ask := func() {
		err := alive()
		if err == nil {
			err = ping()
		}
		answers <- err
	}
	asking, missed, well := true, false, true
	go ask()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-answers:
			asking, missed = false, false
			if err != nil && well {
				log.Warn("the watchdog is not told that all is well", zap.Error(err))
			}
			well = err == nil
		case <-ticker.C:
			if !asking {
				asking = true
				go ask()
			} else if !missed {
				missed = true
				log.Warn("the check for the watchdog does not return", zap.Duration("duration", every))
			}
		}
	}
}
