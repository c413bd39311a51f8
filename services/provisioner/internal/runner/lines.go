// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// readBytes is one read of a pipe; a pipe holds 64 KiB.
const readBytes = 32 << 10

// splitLines emits each line of r until r ends or fails. Newline, carriage return or both end a line; a carriage
// return alone ends no empty one. Of a line longer than maxBytes only the beginning is emitted.
func splitLines(r io.Reader, maxBytes int, emit func(string)) {
	buf := make([]byte, readBytes)
	var line []byte
	var open, afterReturn bool
	end := func() {
		emit(clean(line))
		line, open = line[:0], false
	}
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			switch {
			case b == '\n' && afterReturn && !open: // the other half of "\r\n", or an empty progress line
			case b == '\n':
				end()
			case b == '\r':
				if open {
					end()
				}
			default:
				open = true
				if len(line) < maxBytes {
					line = append(line, b)
				}
			}
			afterReturn = b == '\r'
		}
		if err != nil {
			if open {
				end()
			}
			return
		}
	}
}

// clean makes a line fit for logs, terminals and messages.
func clean(line []byte) string {
	s := strings.ToValidUTF8(string(line), "\uFFFD")
	var b strings.Builder
	b.Grow(len(s))
	for s != "" {
		if n := terminalSequence(s); n > 0 {
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		if !unicode.IsControl(r) || r == '\t' {
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// terminalSequence gives the length of the escape sequence that s begins with, or 0.
func terminalSequence(s string) int {
	if len(s) < 2 || s[0] != '\x1b' {
		return 0
	}
	switch s[1] {
	case '[': // control sequence: ends with a byte from @ to ~
		if i := strings.IndexFunc(s[2:], func(r rune) bool { return r >= '@' && r <= '~' }); i >= 0 {
			return 2 + i + 1
		}
		return len(s)
	case ']': // system command: ends with BEL or ESC backslash
		if i := strings.IndexAny(s[2:], "\x07\x1b"); i >= 0 && s[2+i] == '\x07' {
			return 2 + i + 1
		} else if i >= 0 && strings.HasPrefix(s[2+i:], "\x1b\\") {
			return 2 + i + 2
		}
		return len(s)
	default:
		return 2
	}
}
