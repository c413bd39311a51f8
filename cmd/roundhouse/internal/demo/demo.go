// SPDX-License-Identifier: Apache-2.0

// Package demo shows the whole of Roundhouse once: both daemons are started, a real engine is prepared, started, proven
// ready, asked, drained and gone, and in the end it is proven that nothing is left behind.
//
// Everything but the provisioner's store lies in a fresh folder that is removed, by the next run if this one is killed. The process makes itself the reaper of
// its descendants, so that whatever the daemons leave behind becomes its child: an empty list of descendants is the proof
// that no process is left. Only one Run at a time is possible in a process, and nothing else of it may have children then.
package demo

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

const (
	// poolID is the demo's one pool.
	poolID = "demo"
	// defaultPrompt asks for something with no right answer.
	defaultPrompt = "Write two sentences about a steam locomotive that wakes up in a roundhouse."
)

// Config is what a demo needs.
type Config struct {
	// Engine is the preset to show; empty means quick.
	Engine string
	// CacheDir becomes the provisioner's store, which stays for the next run. Required.
	CacheDir string
	// BinDir is where the daemons are looked for before PATH. Required.
	BinDir string
	// KeepFiles leaves the folder with the daemons' logs and state in place.
	KeepFiles bool
	// Prompt is what the engine is asked; empty means a harmless default.
	Prompt string
	// Out is told the story. Nil means nobody.
	Out io.Writer
	// Style is how progress is shown.
	Style render.Style
}

// Demo is one show, ready to run.
type Demo struct {
	config  Config
	spec    *enginev1.PrepareSpec
	daemons daemonPaths
}

// New checks the config and finds the daemons. It starts nothing.
func New(config Config) (*Demo, error) {
	if config.Engine == "" {
		config.Engine = spec.PresetNames()[0]
	}
	if config.Prompt == "" {
		config.Prompt = defaultPrompt
	}
	if config.Out == nil {
		config.Out = io.Discard
	}
	preset, err := spec.Preset(config.Engine)
	if err != nil {
		return nil, err
	}
	daemons, err := findDaemons(config.BinDir)
	if err != nil {
		return nil, err
	}
	return &Demo{config: config, spec: preset, daemons: daemons}, nil
}

// Run plays the demo and clears up after it, whether it succeeds, fails, or ctx ends in the middle. The clean-up has its
// own time limit, and is cut short by killing what is left when cleanup ends. The error is why the demo failed, or what
// it left behind; the report tells how far it came.
func (d *Demo) Run(ctx, cleanup context.Context) (*Report, error) {
	began := time.Now()
	report := &Report{Preset: d.config.Engine, Store: d.config.CacheDir}
	if err := adoptDescendants(); err != nil {
		return report, err
	}
	stage, err := openStage(d.config.CacheDir)
	if err != nil {
		return report, err
	}
	show := &show{Demo: d, stage: stage, report: report}
	err = show.play(ctx)
	if ctx.Err() != nil {
		show.tell("\nended early: clearing up")
	}
	show.endWatch()
	left := stage.clear(cleanup)
	report.LeftBehind = left.count()
	report.Timeline.Total = time.Since(began)
	if err != nil && ctx.Err() == nil {
		show.tell("\n%s", stage.logTails())
	}
	end := stage.folder.remove
	if d.config.KeepFiles {
		show.tell("kept        %s", stage.folder.path)
		end = stage.folder.keep
	}
	err = cmp.Or(err, end(), left.err())
	show.epilogue(err, left)
	return report, err
}

// stage is the folder of one run and the daemons that run in it.
type stage struct {
	folder      folder
	swept       []string // folders of killed runs that were removed
	store       string
	storeBefore map[string]struct{}
	keeper      *keeper
	provisioner *daemon
	poolManager *daemon
	pools       *poolClient
	endpoints   []string
}

// openStage makes the folders.
func openStage(store string) (*stage, error) {
	if err := os.MkdirAll(store, 0o700); err != nil {
		return nil, reason.New(reason.StorageFailed, "the cache folder cannot be made", reason.Field("--cache"),
			reason.Remedy("give a folder that can be written: --cache DIR"), reason.Cause(err))
	}
	swept := sweep(shortTempDir())
	folder, err := newFolder(shortTempDir())
	if err != nil {
		return nil, reason.New(reason.StorageFailed, "no temporary folder can be made",
			reason.Remedy("set TMPDIR to a folder that can be written"), reason.Cause(err))
	}
	stage := &stage{folder: folder, swept: swept, store: store, storeBefore: names(filepath.Join(store, "tmp"))}
	if err := os.Mkdir(stage.path("tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("make temporary folder: %w", err)
	}
	return stage, nil
}

// maxTempDirBytes leaves room for a socket's name below the kernel's 108 bytes.
const maxTempDirBytes = 50

// shortTempDir is where temporary files belong, or /tmp if sockets there would have too long a path.
func shortTempDir() string {
	if dir := os.TempDir(); len(dir) <= maxTempDirBytes {
		return dir
	}
	return "/tmp"
}

// path is a file of the run.
func (s *stage) path(name string) string { return filepath.Join(s.folder.path, name) }
