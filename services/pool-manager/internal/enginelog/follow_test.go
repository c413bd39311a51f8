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
	"time"

	"github.com/google/go-cmp/cmp"
)

// testTime is a moment, for what bears one.
var testTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// follower collects what Follow emits until it is stopped.
type follower struct {
	lines chan Line
	stop  context.CancelFunc
	err   chan error
}

func startFollowing(t testing.TB, path string, offset int64) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	f := &follower{lines: make(chan Line, 1000), stop: cancel, err: make(chan error, 1)}
	go func() {
		f.err <- Follow(ctx, path, offset, func(l Line) error {
			f.lines <- l
			return nil
		})
	}()
	return f
}

func (f *follower) next(t testing.TB) Line {
	t.Helper()
	select {
	case l := <-f.lines:
		return l
	case err := <-f.err:
		t.Fatalf("Follow ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no line")
	}
	return Line{}
}

func TestFollowSeesLinesAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	path := newLog(t, "old\nbefore\n")
	f := startFollowing(t, path, 4)
	for i, want := range []string{"before", "one", "two", "joined"} {
		switch i {
		case 1:
			add(t, path, "one\ntwo\njoi")
		case 3:
			add(t, path, "ned\nrest")
		}
		if got := f.next(t); got.Text != want || got.Gap {
			t.Fatalf("line %d: got %+v, want %q", i, got, want)
		}
	}
	f.stop()
	if err := <-f.err; err != nil {
		t.Errorf("Follow after its context: %v", err)
	}
	if got := <-f.lines; got.Text != "rest" {
		t.Errorf("what was unfinished at the end: got %+v", got)
	}
}

func TestFollowEmitsEverythingBeforeTheEnd(t *testing.T) {
	t.Parallel()
	text, want := numbered(0, 500)
	path := newLog(t, "")
	f := startFollowing(t, path, 0)
	add(t, path, text)
	f.stop()
	if err := <-f.err; err != nil {
		t.Fatal(err)
	}
	close(f.lines)
	var got []string
	for l := range f.lines {
		got = append(got, l.Text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestFollowEndsWithEmit(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	if err := Follow(t.Context(), newLog(t, "a\n"), 0, func(Line) error { return full }); !errors.Is(err, full) {
		t.Errorf("Follow: got %v, want what emit returned", err)
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	text, _ := numbered(0, 100)
	path := newLog(t, text)
	small := Keeper{Path: path, MaxBytes: int64(len(text))}
	if trimmed, err := small.Trim(testTime); err != nil || trimmed {
		t.Fatalf("Trim of a log of the allowed size: %v, %v", trimmed, err)
	}
	engine, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	small.MaxBytes = 400
	if trimmed, err := small.Trim(testTime); err != nil || !trimmed {
		t.Fatalf("Trim: %v, %v", trimmed, err)
	}
	if _, err := engine.WriteString("after\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("[roundhouse 2026-01-02T03:04:05.000000006Z: log trimmed, its last 400 bytes are in %s; "+
		"lines written at this moment may be lost]\nafter\n", path+OldSuffix)
	if string(got) != want {
		t.Errorf("log after Trim: got %q, want %q", got, want)
	}
	old, err := os.ReadFile(path + OldSuffix)
	if err != nil || string(old) != text[len(text)-400:] {
		t.Errorf("old content: got %q, %v, want the last 400 bytes", old, err)
	}
}

func TestTrimLeavesTheLogWhenItCannotMoveIt(t *testing.T) {
	t.Parallel()
	path := newLog(t, strings.Repeat("x\n", 100))
	if err := os.Mkdir(path+OldSuffix, 0o700); err != nil {
		t.Fatal(err)
	}
	if trimmed, err := (Keeper{Path: path, MaxBytes: 10}).Trim(testTime); err == nil || trimmed {
		t.Fatalf("Trim with a folder in its way: %v, %v; want an error", trimmed, err)
	}
	if got, err := os.ReadFile(path); err != nil || len(got) != 200 {
		t.Errorf("log: %d bytes, %v; want all 200", len(got), err)
	}
}

// TestFollowMarksATrim has a log that is trimmed and has grown past the old offset before the follower looks again, as
// its size alone would not show.
func TestFollowMarksATrim(t *testing.T) {
	t.Parallel()
	path := newLog(t, "first\nsecond\n")
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r := reader{file: file}
	var got []Line
	emit := func(l Line) error {
		got = append(got, l)
		return nil
	}
	if err := r.drain(emit); err != nil {
		t.Fatal(err)
	}
	if trimmed, err := (Keeper{Path: path, MaxBytes: 1}).Trim(testTime); err != nil || !trimmed {
		t.Fatalf("Trim: %v, %v", trimmed, err)
	}
	add(t, path, "third\n")
	if err := r.drain(emit); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || !got[2].Gap || got[2].Offset != 0 || got[3].Text != "third" || got[3].Gap {
		t.Errorf("lines: %+v; want first, second, the mark with a gap, third", got)
	}
}

func TestKeeperRun(t *testing.T) {
	t.Parallel()
	path := newLog(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Keeper{Path: path, MaxBytes: 100, Every: time.Millisecond}.Run(ctx) }()
	f := startFollowing(t, path, 0)
	add(t, path, strings.Repeat("z", 200)+"\n")
	for l := f.next(t); !l.Gap; l = f.next(t) {
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := (Keeper{Path: path + ".none"}).Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run of a missing log: got %v, want not exist", err)
	}
}

func BenchmarkFollow(b *testing.B) {
	path := newLog(b, "")
	f := startFollowing(b, path, 0)
	engine, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	for b.Loop() {
		if _, err := engine.WriteString("llm is listening\n"); err != nil {
			b.Fatal(err)
		}
		f.next(b)
	}
}

// trimmedMeanwhile is a file that is trimmed right before or right after it is read for the nth time.
type trimmedMeanwhile struct {
	*os.File
	trim          func()
	before, after int
	reads         int
}

func (f *trimmedMeanwhile) ReadAt(b []byte, offset int64) (int, error) {
	if len(b) == headBytes {
		return f.File.ReadAt(b, offset)
	}
	f.reads++
	if f.reads == f.before {
		f.trim()
	}
	n, err := f.File.ReadAt(b, offset)
	if f.reads == f.after {
		f.trim()
	}
	return n, err
}

func TestTrimInTheMiddleOfReading(t *testing.T) {
	t.Parallel()
	for _, when := range []*trimmedMeanwhile{{after: 1}, {before: 2}, {after: 2}, {before: 3}, {after: 3}} {
		path := filepath.Join(t.TempDir(), "log")
		add(t, path, "a long line before\n")
		opened, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = opened.Close() })
		when.File = opened
		when.trim = func() {
			if trimmed, err := (Keeper{Path: path, MaxBytes: 1}).Trim(testTime); err != nil || !trimmed {
				t.Fatalf("Trim: %v, %v", trimmed, err)
			}
		}
		r := reader{file: when}
		var got []Line
		for range 3 {
			if err := r.drain(func(l Line) error {
				got = append(got, l)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		last := got[len(got)-1]
		if !last.Gap || last.Offset != 0 || !strings.Contains(last.Text, "trimmed") {
			t.Errorf("trim before read %d or after read %d: the last line is %+v, want a gap at 0", when.before, when.after, last)
		}
	}
}
