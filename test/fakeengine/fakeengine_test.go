// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asEngine makes the test's program be the engine.
const asEngine = "ROUNDHOUSE_TEST_FAKEENGINE"

func TestMain(m *testing.M) {
	if os.Getenv(asEngine) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// longEnough is far longer than an engine takes to answer, and what a test waits to see that it does not.
const longEnough = 300 * time.Millisecond

// engine is a process under test.
type engine struct {
	command *exec.Cmd
	output  *bufio.Scanner
	said    []string
	url     string
}

// start runs the engine; it is killed when the test ends.
func start(t *testing.T, flags ...string) *engine {
	t.Helper()
	args := append([]string{"--host", "127.0.0.1", "--port", "0", "--model", "/m/x.gguf", "--alias", "x", "--parallel", "2", "--metrics"}, flags...)
	e := &engine{command: exec.CommandContext(t.Context(), os.Args[0], args...)}
	e.command.Env = append(os.Environ(), asEngine+"=1")
	output, err := e.command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	e.output = bufio.NewScanner(output)
	if err := e.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.command.Process.Kill() })
	return e
}

// untilReady waits for the line that says where it listens.
func (e *engine) untilReady(t *testing.T) *engine {
	t.Helper()
	for e.output.Scan() {
		e.said = append(e.said, e.output.Text())
		if _, url, found := strings.Cut(e.output.Text(), "listening on "); found {
			e.url = url
			return e
		}
	}
	t.Fatalf("the engine ended before it was ready: %q", e.said)
	return nil
}

// end waits for the end and returns the exit code, or the negative of a signal.
func (e *engine) end(t *testing.T) int {
	t.Helper()
	for e.output.Scan() {
		e.said = append(e.said, e.output.Text())
	}
	err := e.command.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	status, ok := e.command.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		t.Fatalf("no wait status: %v", err)
	}
	if status.Signaled() {
		return -int(status.Signal())
	}
	return status.ExitStatus()
}

// get reads a page, or returns the error of ctx.
func (e *engine) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+path, nil)
	if err != nil {
		return "", err
	}
	return e.do(request)
}

func (e *engine) do(request *http.Request) (string, error) {
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// ask completes a prompt of so many words.
func (e *engine) ask(ctx context.Context, words, tokens int) (string, error) {
	body := fmt.Sprintf(`{"prompt":%q,"max_tokens":%d}`, strings.Repeat("word ", words), tokens)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	text, err := e.do(request)
	if err != nil {
		return "", err
	}
	var got struct {
		Choices []struct{ Text string }
		Usage   struct {
			Tokens int `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Choices) != 1 || got.Usage.Tokens != tokens {
		return "", fmt.Errorf("the answer is %s, %w", text, err)
	}
	return got.Choices[0].Text, nil
}

// metric reads one number.
func (e *engine) metric(t *testing.T, name string) float64 {
	t.Helper()
	page, err := e.get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(page) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "llamacpp:"+name+" "); found {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	t.Fatalf("there is no metric %s in\n%s", name, page)
	return 0
}

// untilMetric polls until a number is at least so high.
func (e *engine) untilMetric(t *testing.T, name string, least float64) {
	t.Helper()
	for e.metric(t, name) < least {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCountersMoveAsTheRealOnes(t *testing.T) {
	t.Parallel()
	hold := filepath.Join(t.TempDir(), "hold")
	e := start(t, "--fake-hold", hold).untilReady(t)
	done := make(chan error, 1)
	go func() {
		text, err := e.ask(t.Context(), 2*batchWords+1, 3)
		if err == nil && text != "0 1 2 " {
			err = fmt.Errorf("the answer is %q", text)
		}
		done <- err
	}()
	e.untilMetric(t, "prompt_tokens_total", 2*batchWords+1)
	if n := e.metric(t, "n_decode_total"); n != 2 {
		t.Errorf("%v decodes after two whole batches of the prompt, want 2", n)
	}
	if n := e.metric(t, "tokens_predicted_total"); n != 0 {
		t.Errorf("%v tokens of answers before the first answer is complete, want 0", n)
	}
	if n := e.metric(t, "requests_processing"); n != 1 {
		t.Errorf("%v requests in flight, want 1", n)
	}
	touch(t, hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"n_decode_total": 5, "tokens_predicted_total": 3, "prompt_tokens_total": 2*batchWords + 1} {
		if n := e.metric(t, name); n != want {
			t.Errorf("%s is %v after the answer, want %v", name, n, want)
		}
	}
}

func TestRequestsWaitForASlot(t *testing.T) {
	t.Parallel()
	e := start(t, "--fake-hold", filepath.Join(t.TempDir(), "never")).untilReady(t)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan struct{}, 3)
	for range 3 {
		go func() {
			_, _ = e.ask(ctx, 1, 1) // left
			ended <- struct{}{}
		}()
	}
	e.untilMetric(t, "requests_processing", 2)
	e.untilMetric(t, "requests_deferred", 1)
	leave()
	for range 3 {
		<-ended
	}
	for e.metric(t, "requests_processing")+e.metric(t, "requests_deferred") > 0 {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStuck(t *testing.T) {
	t.Parallel()
	when := filepath.Join(t.TempDir(), "when")
	e := start(t, "--fake-behave", "stuck", "--fake-behave-when", when, "--fake-pause", "1ms").untilReady(t)
	if _, err := e.ask(t.Context(), 1, 2); err != nil {
		t.Fatalf("before its time: %v", err)
	}
	touch(t, when)
	ctx, leave := context.WithTimeout(t.Context(), longEnough)
	defer leave()
	left := make(chan error, 1)
	go func() {
		_, err := e.ask(ctx, 1, 2)
		left <- err
	}()
	e.untilMetric(t, "requests_processing", 1)
	before := e.metric(t, "n_decode_total")
	if _, err := e.get(t.Context(), "/health"); err != nil {
		t.Errorf("health: %v, want that it is answered", err)
	}
	if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the request ended with %v, want that it is never answered", err)
	}
	if n, after := e.metric(t, "requests_processing"), e.metric(t, "n_decode_total"); n != 1 || after != before {
		t.Errorf("%v requests in flight and %v decodes after %v, want 1 and no more", n, after, before)
	}
}

func TestFreeze(t *testing.T) {
	t.Parallel()
	when := filepath.Join(t.TempDir(), "when")
	e := start(t, "--fake-behave", "freeze", "--fake-behave-when", when).untilReady(t)
	if _, err := e.get(t.Context(), "/health"); err != nil {
		t.Fatalf("before its time: %v", err)
	}
	touch(t, when)
	for _, path := range []string{"/health", "/metrics", "/v1/models"} {
		ctx, leave := context.WithTimeout(t.Context(), longEnough)
		if _, err := e.get(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s is answered: %v", path, err)
		}
		leave()
	}
}

func TestWrongAnswer(t *testing.T) {
	t.Parallel()
	e := start(t, "--fake-behave", "wrong-answer").untilReady(t)
	if text, err := e.ask(t.Context(), 1, 2); err != nil || text != "wrong wrong " {
		t.Errorf("the answer is %q, %v", text, err)
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"one-1", "one-2", "now"} {
		touch(t, filepath.Join(dir, name))
	}
	for _, tt := range []struct {
		name  string
		flags []string
		code  int
		says  string
		ready bool
	}{
		{"in place of loading", []string{"--fake-exit", "7"}, 7, "", false},
		{"by a signal", []string{"--fake-signal", "9"}, -9, "", false},
		{"unasked with code 0", []string{"--fake-crash-after", "1ms"}, 0, "", true},
		{"some time after ready", []string{"--fake-exit", "3", "--fake-crash-after", "1ms"}, 3, "", true},
		{"out of device memory", []string{"--fake-exit", "1", "--fake-last-words", "@cuda-oom"}, 1, "cudaMalloc failed: out of memory", false},
		{"device fault", []string{"--fake-signal", "6", "--fake-last-words", "@gpu-fault"}, -6, "CUDA error: unspecified launch failure", false},
		{"the file is there", []string{"--fake-exit", "4", "--fake-crash-when", filepath.Join(dir, "now")}, 4, "", false},
		{"once", []string{"--fake-exit", "5", "--fake-crash-once", filepath.Join(dir, "one-*"), "--fake-last-words", "first"}, 5, "first", false},
		{"twice", []string{"--fake-exit", "5", "--fake-crash-once", filepath.Join(dir, "one-*"), "--fake-last-words", "second"}, 5, "second", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := start(t, tt.flags...)
			if tt.ready {
				e.untilReady(t)
			}
			if code := e.end(t); code != tt.code {
				t.Errorf("it ends with %d, want %d", code, tt.code)
			}
			if said := strings.Join(e.said, "\n"); !strings.Contains(said, tt.says) || strings.Contains(said, "listening") != tt.ready {
				t.Errorf("it says %q, want %q; ready: %v", said, tt.says, tt.ready)
			}
		})
	}
	t.Cleanup(func() {
		if left, err := filepath.Glob(filepath.Join(dir, "one-*")); err != nil || len(left) > 0 {
			t.Errorf("files for one crash each are left: %v, %v", left, err)
		}
	})
}

func TestCrashOnceIsOverWhenTheFileIsGone(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "once")
	flags := []string{"--fake-signal", "9", "--fake-crash-once", file}
	e := start(t, flags...).untilReady(t)
	touch(t, file)
	if code := e.end(t); code != -9 {
		t.Errorf("it ends with %d, want SIGKILL", code)
	}
	start(t, flags...).untilReady(t)
}

func TestStallAnswersButIsNeverReady(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"--host", "127.0.0.1", "--alias", "x", "--fake-stall"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(o)
	if err != nil {
		t.Fatal(err)
	}
	terms := make(chan os.Signal)
	go s.serve(io.Discard, terms)
	t.Cleanup(func() { _ = s.listener.Close() })
	e := &engine{url: "http://" + s.listener.Addr().String()}
	if _, err := e.get(t.Context(), "/health"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("health: %v, want 503", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--frob"}, {"--port"}, {"--port", "x"}, {"--fake-pause", "x"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse(%q) succeeded", args)
		}
	}
}

func TestHelpListsEveryFlag(t *testing.T) {
	t.Parallel()
	var o options
	for name := range o.values() {
		if !strings.Contains(help, name+" ") {
			t.Errorf("the help does not list %s", name)
		}
	}
	for name := range o.switches() {
		if !strings.Contains(help, name+" ") {
			t.Errorf("the help does not list %s", name)
		}
	}
}
