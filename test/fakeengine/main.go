// SPDX-License-Identifier: Apache-2.0

// Command fakeengine speaks the interface of llama-server and misbehaves as its flags say. Tests use it where a real engine
// cannot be made to fail in a certain way. Its answers have the shape of the real ones; its words are numbers.
//
// As the real one it takes no request before its model is loaded, answers 503 meanwhile, ends with code 0 on a SIGTERM
// without requests in flight, hangs on one with, and ends with code 1 on the second.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	host, model, alias string
	port, slots        int

	exit      int           // end with this code in place of loading; 0 means no.
	signal    int           // be killed by this signal in place of loading; 0 means no.
	lastWords string        // print this before either.
	noise     int           // print so many bytes of output first.
	forks     int           // start so many processes in sessions of their own, which ignore SIGTERM.
	loadUntil string        // answer 503 until this file exists.
	hold      string        // after its first token each answer waits until this file exists.
	pause     time.Duration // between two tokens.
	modelID   string        // say that this model is served.
	behave    []string      // deaf, mute, secretive.
}

// The values of --fake-behave.
const (
	deaf      = "deaf"      // ignores SIGTERM.
	mute      = "mute"      // does not listen.
	secretive = "secretive" // never answers /metrics.
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

// help lists the flags in the form of the real one's list.
const help = `----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set model name aliases
--host HOST                             ip address to listen
--port PORT                             port to listen
--reuse-port                            allow multiple sockets to bind to the same port
-np,   --parallel N                     number of server slots
--metrics                               enable prometheus compatible metrics endpoint
--no-warmup                             skip warming up the model
--no-ui                                 no web page
--offline                               fetch nothing
--fake-exit N                           end with this code in place of loading
--fake-signal N                         be killed by this signal in place of loading
--fake-last-words TEXT                  print this before either
--fake-noise N                          print so many bytes first
--fake-forks N                          start so many processes in sessions of their own
--fake-load-until FILE                  answer 503 until this file exists
--fake-hold FILE                        after its first token each answer waits until this file exists
--fake-pause DURATION                   time between two tokens
--fake-model-id ID                      say that this model is served
--fake-behave HOW                       deaf, mute or secretive
`

func parse(args []string) (options, error) {
	opts := options{pause: time.Millisecond}
	texts := map[string]*string{
		"--host": &opts.host, "--model": &opts.model, "--alias": &opts.alias, "--fake-last-words": &opts.lastWords,
		"--fake-load-until": &opts.loadUntil, "--fake-hold": &opts.hold, "--fake-model-id": &opts.modelID,
	}
	numbers := map[string]*int{
		"--port": &opts.port, "--parallel": &opts.slots, "--fake-exit": &opts.exit, "--fake-signal": &opts.signal,
		"--fake-noise": &opts.noise, "--fake-forks": &opts.forks, "--ctx-size": new(int), "--threads": new(int),
	}
	for i := 0; i < len(args); i++ {
		name, value := args[i], ""
		if slices.Contains([]string{"--metrics", "--no-warmup", "--no-ui", "--offline"}, name) {
			continue
		}
		if i++; i < len(args) {
			value = args[i]
		}
		var err error
		switch {
		case texts[name] != nil:
			*texts[name] = value
		case numbers[name] != nil:
			*numbers[name], err = strconv.Atoi(value)
		case name == "--fake-pause":
			opts.pause, err = time.ParseDuration(value)
		case name == "--fake-behave":
			opts.behave = append(opts.behave, value)
		case name == "--fit":
		default:
			err = fmt.Errorf("%s is unknown", name)
		}
		if err != nil {
			return options{}, err
		}
	}
	return opts, nil
}

// run is the life of the engine. It returns the exit code.
func (o options) run(log io.Writer) int {
	terms := make(chan os.Signal, 2)
	signal.Notify(terms, syscall.SIGTERM)
	if slices.Contains(o.behave, deaf) {
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
	if o.exit != 0 || o.signal != 0 {
		fmt.Fprintln(log, o.lastWords)
		if o.signal != 0 {
			die(syscall.Signal(o.signal))
		}
		return o.exit
	}
	server, err := newServer(o)
	if err != nil {
		fmt.Fprintln(log, "error: couldn't bind HTTP server socket:", err)
		return 1
	}
	return server.serve(log, terms)
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
