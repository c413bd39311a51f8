// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"time"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Upsert writes the newest snapshot of a pool that is new or has changed, seen at the given time.
func Upsert(w io.Writer, format Format, at time.Time, pool *poolv1.Pool) error {
	if format == JSON {
		text, err := marshal(pool)
		if err != nil {
			return err
		}
		return write(w, fmt.Appendf(nil, "{\"upsert\":%s}\n", text))
	}
	return changeLine(w, at, PoolLine(pool))
}

// Deleted writes that a pool is gone.
func Deleted(w io.Writer, format Format, at time.Time, poolID string) error {
	if format == JSON {
		text, err := marshal(&poolv1.Deleted{PoolId: poolID})
		if err != nil {
			return err
		}
		return write(w, fmt.Appendf(nil, "{\"deleted\":%s}\n", text))
	}
	return changeLine(w, at, poolID+"  deleted")
}

// Synced writes that everything was told that is there.
func Synced(w io.Writer, format Format, at time.Time) error {
	if format == JSON {
		return write(w, []byte("{\"synced\":{}}\n"))
	}
	return changeLine(w, at, "-- up to date; changes follow")
}

func changeLine(w io.Writer, at time.Time, text string) error {
	return write(w, []byte(at.Format(time.TimeOnly)+"  "+text+"\n"))
}
