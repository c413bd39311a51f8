// SPDX-License-Identifier: Apache-2.0

// Package processtest runs scripted processes for tests: a test binary runs itself again and behaves as told.
//
// A test package calls Main at the head of its TestMain and gives the result of Command to whatever starts processes.
// The script travels in the arguments, so that it needs nothing of the environment. It stores nothing.
package processtest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// mark is the first argument of a scripted process.
const mark = "roundhouse-scripted-process"

// Lasts is how long a script without an end goes on: longer than any test.
const Lasts = time.Hour

// Script is what a process does, in the order of the fields. The zero value does nothing for Lasts.
type Script struct {
	Ignore      []syscall.Signal  // signals without effect.
	OnTerm      *End              // what TERM leads to, instead of death.
	Lines       []string          // what is printed.
	Children    []Child           // what is started.
	Grow        int               // how many bytes of memory are taken and used.
	ListenAfter time.Duration     // the delay before Listen.
	Listen      string            // the TCP address to serve HTTP on; empty serves nothing. Failing to listen is exit 1.
	ReadyAfter  time.Duration     // how long /health answers 503 before 200.
	ReadyLine   string            // what is printed with the first 200; %s is the address.
	Answers     map[string]string // path -> body of other pages.
	End         *End
}

// End is how a process ends.
type End struct {
	After  time.Duration
	Signal syscall.Signal // 0: exit with Code.
	Code   int
}

// Detachment says how far a child is from its parent.
type Detachment int

// The zero value stays in the parent's session and group.
const (
	Stay Detachment = iota
	OwnGroup
	OwnSession
	Daemon // in a session of its own, its parent gone.
)

// Child is a process that a script starts.
type Child struct {
	Script   Script
	Detach   Detachment
	ClearEnv bool // the child has no environment at all.
	NoFiles  bool // the child has nothing open; what it prints is lost.
}

// Main runs the script and ends the program if this process is a scripted one; otherwise it does nothing.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != mark {
		return
	}
	var s Script
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		fail(err)
	}
	s.run()
	os.Exit(0)
}

// Command returns the program and the arguments that play the script.
func Command(s Script) (executable string, args []string, err error) {
	text, err := json.Marshal(s)
	if err != nil {
		return "", nil, fmt.Errorf("write script: %w", err)
	}
	executable, err = os.Executable()
	if err != nil {
		return "", nil, fmt.Errorf("find test binary: %w", err)
	}
	return executable, []string{mark, string(text)}, nil
}

func (s Script) run() {
	for _, sig := range s.Ignore {
		signal.Ignore(sig)
	}
	if s.OnTerm != nil {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			s.OnTerm.happen()
		}()
	}
	for _, line := range s.Lines {
		fmt.Println(line)
	}
	for _, c := range s.Children {
		c.start()
	}
	grown := make([]byte, s.Grow)
	for i := 0; i < len(grown); i += os.Getpagesize() {
		grown[i] = 1
	}
	if s.Listen != "" {
		<-time.After(s.ListenAfter)
		go s.serve()
	}
	if s.End != nil {
		s.End.happen()
	}
	<-time.After(Lasts)
	runtime.KeepAlive(grown)
}

func (e End) happen() {
	<-time.After(e.After)
	if e.Signal != 0 {
		signal.Reset(e.Signal)
		_ = syscall.Kill(os.Getpid(), e.Signal)
		<-time.After(Lasts)
	}
	syscall.Exit(e.Code) // At once: os.Exit waits a second for reports when built with the race detector.
}

func (s Script) serve() {
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		fail(err)
	}
	ready := time.After(s.ReadyAfter)
	up := make(chan struct{})
	go func() {
		<-ready
		close(up)
		if s.ReadyLine != "" {
			fmt.Println(strings.ReplaceAll(s.ReadyLine, "%s", l.Addr().String()))
		}
	}()
	fail(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, other := s.Answers[r.URL.Path]
		select {
		case <-up:
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if !other && r.URL.Path != "/health" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(body))
	})))
}

// start starts the child and leaves it to itself.
func (c Child) start() {
	s := c.Script
	attr := &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{}, Env: os.Environ()}
	if c.NoFiles {
		attr.Files = nil
	}
	switch c.Detach {
	case Stay:
	case OwnGroup:
		attr.Sys.Setpgid = true
	case OwnSession:
		attr.Sys.Setsid = true
	case Daemon:
		s = Script{Children: []Child{{Script: c.Script, Detach: OwnSession, ClearEnv: c.ClearEnv, NoFiles: c.NoFiles}}, End: &End{}}
	}
	if c.ClearEnv && c.Detach != Daemon {
		attr.Env = []string{"GORACE=atexit_sleep_ms=0"}
	}
	exe, args, err := Command(s)
	if err != nil {
		fail(err)
	}
	p, err := os.StartProcess(exe, append([]string{exe}, args...), attr)
	if err != nil {
		fail(err)
	}
	go func() { _, _ = p.Wait() }()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
