// SPDX-License-Identifier: Apache-2.0

package enginelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newLog writes a log and returns its path.
func newLog(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.log")
	add(t, path, text)
	return path
}

// add appends to a log as an engine does.
func add(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func texts(lines []Line) []string {
	all := make([]string, len(lines))
	for i, l := range lines {
		all[i] = l.Text
	}
	return all
}

func numbered(from, to int) (text string, lines []string) {
	for i := from; i < to; i++ {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	return strings.Join(lines, "\n") + "\n", lines
}

func TestTail(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine+5)
	many, lines := numbered(0, 300)
	for _, tt := range []struct {
		name, text string
		n          int
		want       []string
	}{
		{"empty", "", 3, []string{}},
		{"none asked", "a\nb\n", 0, []string{}},
		{"fewer than asked", "a\nb\n", 3, []string{"a", "b"}},
		{"as many as asked", "a\nb\n", 2, []string{"a", "b"}},
		{"the last", "a\nb\nc\n", 1, []string{"c"}},
		{"unfinished", "a\nb\nc", 2, []string{"b", "c"}},
		{"blank lines count", "a\n\n\n", 2, []string{"", ""}},
		{"carriage returns", "a\r\nb\r\n", 2, []string{"a", "b"}},
		{"long", "a\n" + long + "\nb\n", 2, []string{long[:maxLine], "b"}},
		{"many", many, 100, lines[200:]},
		{"the window is smaller", strings.Repeat("y", tailBytes) + "\na\nb\n", 9, []string{"a", "b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := newLog(t, tt.text)
			got, err := Tail(path, tt.n)
			if diff := cmp.Diff(tt.want, texts(got)); err != nil || diff != "" {
				t.Fatalf("Tail: %v (-want +got):\n%s", err, diff)
			}
			for _, l := range got {
				if want := tt.text[l.Offset:]; !strings.HasPrefix(want, l.Text) || l.Gap || l.Cut != (len(l.Text) == maxLine) {
					t.Errorf("line %+.40v does not stand at its offset", l)
				}
			}
		})
	}
}

func TestTailOffset(t *testing.T) {
	t.Parallel()
	path := newLog(t, "one\ntwo\nthree\n")
	for n, want := range map[int]int64{0: 14, 1: 8, 2: 4, 3: 0, 4: 0} {
		if got, err := TailOffset(path, n); err != nil || got != want {
			t.Errorf("TailOffset(%d): got %d, %v, want %d", n, got, err, want)
		}
	}
}

func TestMissingLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none")
	_, tailErr := Tail(path, 1)
	_, offsetErr := TailOffset(path, 1)
	_, readErr := Read(t.Context(), path, 0, nil)
	followErr := Follow(t.Context(), path, 0, nil)
	_, trimErr := Keeper{Path: path}.Trim(testTime)
	for name, err := range map[string]error{
		"Tail": tailErr, "TailOffset": offsetErr, "Read": readErr, "Follow": followErr, "Trim": trimErr,
	} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of a missing log: got %v, want not exist", name, err)
		}
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	path := newLog(t, "one\ntwo\nunfin")
	var got []Line
	emit := func(l Line) error {
		got = append(got, l)
		return nil
	}
	next, err := Read(t.Context(), path, 4, emit)
	if err != nil || next != 8 {
		t.Fatalf("Read: next %d, %v; want 8, where the unfinished line begins", next, err)
	}
	add(t, path, "ished\n")
	if next, err = Read(t.Context(), path, next, emit); err != nil || next != 19 {
		t.Errorf("Read again: next %d, %v; want 19", next, err)
	}
	want := []Line{{Text: "two", Offset: 4}, {Text: "unfinished", Offset: 8}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	stop := errors.New("stop")
	if next, err := Read(t.Context(), path, 0, func(Line) error { return stop }); !errors.Is(err, stop) || next != 4 {
		t.Errorf("Read with a failing emit: next %d, %v", next, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := Read(ctx, path, 0, emit); !errors.Is(err, stop) {
		t.Errorf("Read under an ended context: got %v, want its cause", err)
	}
}

// FuzzReader cuts a text into pieces that are written one by one; however it is cut, the lines are the same.
func FuzzReader(f *testing.F) {
	f.Add("one\ntwo\r\n\nthree", uint8(1))
	f.Add(strings.Repeat("z", maxLine+1)+"\n", uint8(200))
	f.Fuzz(func(t *testing.T, text string, piece uint8) {
		path := newLog(t, "")
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r := reader{file: file}
		var got []string
		emit := func(l Line) error {
			got = append(got, l.Text)
			return nil
		}
		for rest := text; rest != ""; {
			n := min(len(rest), max(int(piece), len(text)/16)+1)
			add(t, path, rest[:n])
			rest = rest[n:]
			if err := r.drain(emit); err != nil {
				t.Fatal(err)
			}
		}
		if l, ok := r.rest(); ok {
			got = append(got, l.Text)
		}
		var want []string
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			line = line[:min(len(line), maxLine)]
			want = append(want, strings.TrimSuffix(line, "\r"))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("lines of %.60q (-want +got):\n%s", text, diff)
		}
	})
}
