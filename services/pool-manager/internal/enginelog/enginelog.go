// SPDX-License-Identifier: Apache-2.0

// Package enginelog reads the log files that engines append to, follows them, and keeps them small.
//
// Readers work on the file alone, so a log can be read whether or not its engine, or the manager that started it,
// still lives. A position is a byte offset, good until the file is trimmed; a reader that was overtaken by a trim gets
// a Line that marks the gap. Lines are whole: text without its newline yet is held back until the reader is told that
// no more will come. Nothing here is kept in memory between calls. Any number of readers may work at once; only one
// trimmer per file.
package enginelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	// maxLine is the most of one line that is returned in bytes; the rest of a longer one is dropped.
	maxLine = 16 << 10
	// block is how much is read at once.
	block = 64 << 10
	// tailBytes bounds how far back a tail is looked for.
	tailBytes = 1 << 20
)

// Line is one line of a log.
type Line struct {
	Text   string // without the newline; at most 16 KiB.
	Offset int64  // where it starts in the file.
	Cut    bool   // the line was longer than Text.
	Gap    bool   // the file was trimmed since the line before: something may be missing here.
}

// Tail returns the last n lines of a log, fewer if it has fewer or if they fill more than 1 MiB. An unfinished last
// line counts.
func Tail(path string, n int) ([]Line, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("tail log: %w", err)
	}
	defer f.Close()
	start, err := tailOffset(f, n)
	if err != nil {
		return nil, fmt.Errorf("tail log %s: %w", path, err)
	}
	lines := make([]Line, 0, n)
	r := reader{file: f, next: start}
	err = r.drain(func(l Line) error {
		lines = append(lines, l)
		return nil
	})
	if err == nil {
		if l, ok := r.rest(); ok {
			lines = append(lines, l)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tail log %s: %w", path, err)
	}
	return lines[max(0, len(lines)-n):], nil // The engine may have added some meanwhile.
}

// TailOffset returns the offset at which the last n lines of a log begin, to be followed from.
func TailOffset(path string, n int) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("tail log: %w", err)
	}
	defer f.Close()
	start, err := tailOffset(f, n)
	if err != nil {
		return 0, fmt.Errorf("tail log %s: %w", path, err)
	}
	return start, nil
}

// tailOffset looks backwards for the newline before the last n lines.
func tailOffset(f *os.File, n int) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if n <= 0 || size == 0 {
		return size, nil
	}
	floor := max(0, size-tailBytes)
	buf := make([]byte, size-floor)
	if _, err := f.ReadAt(buf, floor); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	end := len(buf)
	if buf[end-1] == '\n' {
		end--
	}
	for range n {
		i := bytes.LastIndexByte(buf[:end], '\n')
		if i < 0 {
			if floor == 0 {
				return 0, nil
			}
			return floor + int64(bytes.IndexByte(buf, '\n')+1), nil // The line at the floor may lack its head.
		}
		end = i
	}
	return floor + int64(end) + 1, nil
}

// Read calls emit for each whole line from offset to what is the end of the log now, and returns the offset to go on
// from. The end of ctx stops it with its cause. An error of emit is returned as it is.
func Read(ctx context.Context, path string, offset int64, emit func(Line) error) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return offset, fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	r := reader{file: f, next: offset}
	err = r.drain(func(l Line) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return emit(l)
	})
	return r.start(), err
}
