// SPDX-License-Identifier: Apache-2.0

package enginelog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// headBytes is how much of a file's beginning is compared to see that it was trimmed.
const headBytes = 96

// file is what a reader needs of one.
type file interface {
	io.ReaderAt
	Stat() (os.FileInfo, error)
}

// reader takes whole lines out of a file that grows, and that may be trimmed at any time.
type reader struct {
	file    file
	next    int64  // offset of the next byte to read.
	head    []byte // the beginning of the file as last seen.
	partial []byte // the line being read, at most maxLine of it.
	dropped int64  // how much of that line is not in partial.
	gap     bool   // a trim was seen since the last line.
}

// start is where the line being read begins.
func (r *reader) start() int64 { return r.next - int64(len(r.partial)) - r.dropped }

// drain emits every whole line up to the end of the file. An error of emit ends it and is returned as it is; the line
// is not emitted again.
func (r *reader) drain(emit func(Line) error) error {
	buf := make([]byte, block)
	for {
		n, err := r.file.ReadAt(buf, r.next)
		// Looked at after reading: what was read before a trim is of the old content, and anything else is read again.
		if trimmed, err := r.noticeTrim(buf[:n]); err != nil {
			return err
		} else if trimmed {
			continue
		}
		for rest := buf[:n]; len(rest) > 0; {
			taken, lineErr := r.take(rest, emit)
			if lineErr != nil {
				return lineErr
			}
			rest = rest[taken:]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}

// take consumes one line of b, or all of b if it holds no newline.
func (r *reader) take(b []byte, emit func(Line) error) (int, error) {
	text, whole := b, false
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		text, whole = b[:i], true
	}
	kept := min(len(text), maxLine-len(r.partial))
	r.partial = append(r.partial, text[:kept]...)
	r.dropped += int64(len(text) - kept)
	r.next += int64(len(text))
	if !whole {
		return len(text), nil
	}
	line := r.line()
	r.next++
	return len(text) + 1, emit(line)
}

// line returns what is being read and begins anew.
func (r *reader) line() Line {
	text := bytes.TrimSuffix(r.partial, []byte("\r"))
	l := Line{Text: string(text), Offset: r.start(), Cut: r.dropped > 0, Gap: r.gap}
	r.partial, r.dropped, r.gap = r.partial[:0], 0, false
	return l
}

// rest returns an unfinished line, for when no more will come.
func (r *reader) rest() (Line, bool) {
	if len(r.partial) == 0 {
		return Line{}, false
	}
	return r.line(), true
}

// noticeTrim begins again at the head of a file that was trimmed since the last look, and says so. Size alone does not
// tell: the file may have grown past the old offset meanwhile. So the head is compared, which a trim always changes, also
// with what was just read from the next offset on.
func (r *reader) noticeTrim(read []byte) (bool, error) {
	info, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	head := make([]byte, headBytes)
	n, err := r.file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read log: %w", err)
	}
	head = head[:n]
	trimmed := info.Size() < r.next || !bytes.HasPrefix(head, r.head) || r.next < int64(n) && !overlap(head[r.next:], read)
	if trimmed {
		r.next, r.partial, r.dropped, r.gap = 0, r.partial[:0], 0, true
	}
	r.head = head
	return trimmed, nil
}

// overlap is whether two texts agree as far as both go.
func overlap(a, b []byte) bool {
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n])
}
