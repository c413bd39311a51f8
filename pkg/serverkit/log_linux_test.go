// SPDX-License-Identifier: Apache-2.0

package serverkit_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

func TestNewLoggerWritesOneObjectALine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := serverkit.NewLogger("info", zapcore.AddSync(&out))
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("not this")
	log.Warn("this", zap.Duration("duration", 1500*time.Millisecond))
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Fatalf("%d lines, want 1:\n%s", n, out.String())
	}
	var line map[string]string
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if line["level"] != "warn" || line["msg"] != "this" || line["duration"] != "1.5s" {
		t.Errorf("line = %v", line)
	}
	if _, err := time.Parse(time.RFC3339Nano, line["time"]); err != nil {
		t.Errorf("time: %v", err)
	}
}

func TestNewLoggerRefusesOtherLevels(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"loud", "fatal", "dpanic", "3"} {
		if _, err := serverkit.NewLogger(level, zapcore.AddSync(new(bytes.Buffer))); reason.Of(err) != reason.InvalidParams {
			t.Errorf("NewLogger(%q): %v, want INVALID_PARAMS", level, err)
		}
	}
}
