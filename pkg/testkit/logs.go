// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// LogCapture keeps what is logged, as data. Its methods may be called while others log.
type LogCapture struct {
	// Logger writes into the capture, every level.
	Logger *zap.Logger

	logs *observer.ObservedLogs
}

// NewLogCapture makes an empty capture. If the test fails, its lines are printed with the test's output.
func NewLogCapture(tb testing.TB) *LogCapture {
	tb.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	tb.Cleanup(func() {
		if !tb.Failed() {
			return
		}
		for _, line := range logs.All() {
			tb.Logf("log: %s %s %v", line.Level, line.Message, line.ContextMap())
		}
	})
	return &LogCapture{Logger: zap.New(core), logs: logs}
}

// LogLine is one line that was logged.
type LogLine struct {
	// Level is its level.
	Level zapcore.Level
	// Message is its constant text.
	Message string
	// Fields are its data by key, as zap's own map encoder gives them.
	Fields map[string]any
}

// Lines are the lines with the message, oldest first; all lines if the message is empty.
func (c *LogCapture) Lines(message string) []LogLine {
	var lines []LogLine
	for _, entry := range c.logs.All() {
		if message == "" || entry.Message == message {
			lines = append(lines, LogLine{Level: entry.Level, Message: entry.Message, Fields: entry.ContextMap()})
		}
	}
	return lines
}
