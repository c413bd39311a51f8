// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"fmt"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// NewLogger writes lines of the level (debug, info, warn or error) and above to w: as text for people if w is a terminal,
// else as one JSON object each with time, level, msg and the fields. Another level is InvalidParams for log-level.
func NewLogger(level string, w zapcore.WriteSyncer) (*zap.Logger, error) {
	threshold, err := zapcore.ParseLevel(level)
	if err != nil || threshold > zapcore.ErrorLevel {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("unknown log level %q", level), reason.Field("log-level"),
			reason.Remedy("use debug, info, warn or error"))
	}
	format := zap.NewProductionEncoderConfig()
	format.TimeKey = "time"
	format.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	format.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(format)
	if isTerminal(w) {
		format.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(format)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(w), threshold)), nil
}

func isTerminal(w zapcore.WriteSyncer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
