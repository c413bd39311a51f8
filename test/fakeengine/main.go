// SPDX-License-Identifier: Apache-2.0

// Command fakeengine speaks the interface of llama-server and misbehaves as its flags say. Tests use it where a real engine
// cannot be made to fail in a certain way. Its answers have the shape of the real ones; its words are numbers.
//
// As the real one it takes no request before its model is loaded, answers 503 meanwhile, lets requests wait for a slot, counts
// in /metrics what it computes as it does so, ends with code 0 on a SIGTERM without requests in flight, hangs on one with, and
// ends with code 1 on the second.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	args := os.Args[1:]
	switch {
	case slices.Contains(args, "--version"):
		fmt.Println("version: 0.0.1-fake (0000000)")
	case slices.Contains(args, "--help"):
		fmt.Print(help)
	case slices.Equal(args, []string{"linger"}):
		linger()
	default:
		opts, err := parse(args)
		if err != nil {
			fmt.Fprintln(os.Stderr, "error: invalid argument:", err)
			os.Exit(1)
		}
		os.Exit(opts.run(os.Stderr))
	}
}

// run is the life of the engine. It returns the exit code.
func (o options) run(log io.Writer) int {
	terms := make(chan os.Signal, 2)
	signal.Notify(terms, syscall.SIGTERM)
	if o.is(deaf) {
		signal.Stop(terms)
		signal.Ignore(syscall.SIGTERM)
	}
	fmt.Fprintf(log, "loading model %s\n", filepath.Base(o.model))
	for written := 0; written < o.noise; written += 100 {
		fmt.Fprintln(log, strings.Repeat("n", 99))
	}
	for range o.forks {
		if err := fork(); err != nil {
			fmt.Fprintln(log, "error: fork:", err)
			return 1
		}
	}
	if (o.exit != 0 || o.signal != 0) && !o.crashesLater() {
		return o.crash(log)
	}
	server, err := newServer(o)
	if err != nil {
		fmt.Fprintln(log, "error: couldn't bind HTTP server socket:", err)
		return 1
	}
	return server.serve(log, terms)
}

// crash says the last words and returns the exit code, if no signal is to end it.
func (o options) crash(log io.Writer) int {
	fmt.Fprintln(log, o.lastWords)
	if o.signal != 0 {
		die(syscall.Signal(o.signal))
	}
	return o.exit
}

// fork starts a process in a session of its own that lives until it is killed. It has this one's environment and output.
func fork() error {
	command := exec.Command("/proc/self/exe", "linger")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return command.Start()
}

// linger is what fork starts.
func linger() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	select {}
}

// die ends the process by a signal. The runtime would make a trace of it and exit, so another program takes its place.
func die(sig syscall.Signal) {
	err := syscall.Exec("/bin/sh", []string{"sh", "-c", fmt.Sprintf("kill -%d $$", sig)}, os.Environ())
	fmt.Fprintln(os.Stderr, "error: exec:", err)
	os.Exit(1)
}
