// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

const (
	// probeTimeout is far more than loading a library of a gigabyte takes.
	probeTimeout = 10 * time.Second
	// maxProbeBytes is far more than a list of flags.
	maxProbeBytes = 1 << 20
)

// probe returns what the engine of key says of itself, and asks it only once.
func (s *Service) probe(ctx context.Context, planned *plan.Plan, key string, program engines.Program, t *track) (engines.Probe, error) {
	kept := plan.ProbeKey(planned.Kind.Traits(), key)
	if probe, ok := s.facts.Probe(kept); ok {
		t.cached(planned.Step(plan.EngineProbe))
		return probe, nil
	}
	var probe engines.Probe
	err := s.do(ctx, t, planned.Step(plan.EngineProbe), func(ctx context.Context, _ *step) (err error) {
		if probe, err = planned.Kind.Probe(ctx, program, s.ask); err != nil {
			return err
		}
		return remember(s.cfg.Store, kept, probe)
	})
	return probe, err
}

// ask implements engines.Ask.
func (s *Service) ask(ctx context.Context, program engines.Program, env map[string]string, args ...string) (string, error) {
	merged := maps.Clone(program.Env)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, env)
	if len(program.LibraryDirs) > 0 {
		merged["LD_LIBRARY_PATH"] = strings.Join(program.LibraryDirs, ":")
	}
	var variables []string
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		variables = append(variables, name+"="+merged[name])
	}
	var text strings.Builder
	_, err := s.cfg.Run(ctx, runner.Command{
		Path: program.Executable, Args: append(slices.Clone(program.Prefix), args...), Dir: program.Dir, Env: variables, Timeout: probeTimeout,
		Lines: func(_ runner.Stream, line string) {
			if text.Len() < maxProbeBytes {
				text.WriteString(line + "\n")
			}
		},
	})
	if err == nil {
		return text.String(), nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	name := filepath.Base(program.Executable)
	if errors.Is(err, runner.ErrTimeout) {
		err = fmt.Errorf("no answer within %s", probeTimeout)
	}
	return "", reason.New(reason.EngineNotFound, fmt.Sprintf("%s %s cannot be run on this machine", name, strings.Join(args, " ")),
		reason.Field("spec.engine"), reason.Cause(err), reason.Remedy("use an engine that is made for this machine and has all its libraries"))
}

// statProgram refuses what cannot be executed.
func statProgram(path string) (fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, externalError(path, err)
	}
	if info.Mode()&0o111 == 0 {
		return nil, reason.New(reason.InvalidParams, path+" is not executable", reason.Field(plan.FieldExternal), reason.Remedy("name an executable file"))
	}
	return info, nil
}

// fetch brings one file into the store.
func (s *Service) fetch(ctx context.Context, planned plan.Step, request fetch.Request, t *track) (fetch.Result, error) {
	if result, ok := s.cfg.Fetcher.Cached(request); ok {
		t.cached(planned)
		return result, nil
	}
	var result fetch.Result
	err := s.do(ctx, t, planned, func(ctx context.Context, step *step) (err error) {
		result, err = s.cfg.Fetcher.Fetch(ctx, request, step.bytes)
		return err
	})
	return result, err
}
