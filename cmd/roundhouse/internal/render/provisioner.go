// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// Plan writes a plan as a table, with what the defaults made of the spec above it.
func Plan(w io.Writer, plan *provisionerv1.PlanResponse) error {
	if err := write(w, []byte(planHead(plan.GetSpec()))); err != nil {
		return err
	}
	rows := [][]string{{"STEP", "KIND", "CACHED", "SIZE", "LAST TIME"}}
	for _, step := range plan.GetSteps() {
		size := "-"
		if step.SizeBytes != nil {
			size = Bytes(step.GetSizeBytes())
		}
		rows = append(rows, []string{step.GetName(), stepKind(step.GetKind()), yesNo()[step.GetCached()], size, optionalDuration(step.GetLastDuration())})
	}
	return table(w, rows)
}

func planHead(spec *enginev1.PrepareSpec) string {
	var head strings.Builder
	engine := spec.GetEngine()
	fmt.Fprintf(&head, "engine  %s, %s\n", engine.GetKind(), engineSource(engine))
	fmt.Fprintf(&head, "model   %s, from %s\n", orDash(spec.GetModel().GetId()), spec.GetModel().GetUri())
	launch := spec.GetLaunch()
	context := "the model's, at most 4096"
	if tokens := launch.GetContextTokens(); tokens != 0 {
		context = strconv.FormatUint(uint64(tokens), 10)
	}
	fmt.Fprintf(&head, "launch  context %s, slots %d", context, max(launch.GetSlots(), 1))
	if flags := launch.GetFlags(); len(flags) > 0 {
		fmt.Fprintf(&head, ", flags %s", strings.Join(flags, " "))
	}
	head.WriteString("\n\n")
	return head.String()
}

// engineSource says in words where an engine comes from.
func engineSource(engine *enginev1.EngineSpec) string {
	if external := engine.GetExternal(); external != nil {
		return "installed at " + external.GetPath()
	}
	if artifact := engine.GetPackage(); artifact != nil {
		return "from package " + artifact.GetUri()
	}
	build := engine.GetSourceBuild()
	built := fmt.Sprintf("built for %s (%s)",
		strings.TrimPrefix(build.GetAccelerator().String(), "ACCELERATOR_"), cpuTarget(build.GetCpuTarget()))
	switch {
	case build.GetGit() != nil:
		return fmt.Sprintf("%s from git %s at %s", built, build.GetGit().GetUrl(), build.GetGit().GetRef())
	case build.GetBundle() != nil:
		return fmt.Sprintf("%s from bundle %s at %s", built, build.GetBundle().GetUri(), build.GetBundle().GetRef())
	default:
		return fmt.Sprintf("%s from archive %s", built, build.GetArchive().GetUri())
	}
}

func cpuTarget(target enginev1.CpuTarget) string {
	if target == enginev1.CpuTarget_CPU_TARGET_NATIVE {
		return "native"
	}
	return "portable"
}

// Prepared writes one prepared engine.
func Prepared(w io.Writer, prepared *enginev1.PreparedEngine) error {
	engine, model := prepared.GetEngine(), prepared.GetModel()
	file := &enginev1.ModelFile{}
	if files := model.GetFiles(); len(files) > 0 {
		file = files[0]
	}
	return table(w, [][]string{
		{"prepared", prepared.GetPreparedId()},
		{"engine", fmt.Sprintf("%s %s (%s)", engine.GetKind(), engine.GetVersion(), mode(engine.GetMode()))},
		{"runs", prepared.GetProcess().GetExecutable()},
		{"model", fmt.Sprintf("%s (%s %s, %s)", model.GetId(), orDash(model.GetArchitecture()),
			orDash(model.GetQuantization()), Bytes(file.GetSizeBytes()))},
		{"file", file.GetPath()},
	})
}

// PreparedList writes prepared engines as a table.
func PreparedList(w io.Writer, list []*enginev1.PreparedEngine) error {
	rows := [][]string{{"PREPARED", "ENGINE", "VERSION", "MODE", "MODEL", "QUANT", "SLOTS", "PREPARED AT"}}
	for _, p := range list {
		rows = append(rows, []string{
			p.GetPreparedId(), p.GetEngine().GetKind(), orDash(p.GetEngine().GetVersion()), mode(p.GetEngine().GetMode()),
			p.GetModel().GetId(), orDash(p.GetModel().GetQuantization()),
			strconv.FormatUint(uint64(max(p.GetSpec().GetLaunch().GetSlots(), 1)), 10),
			stamp(p.GetPreparedAt()),
		})
	}
	return table(w, rows)
}

// Preflight writes what a machine can prepare: the tools with the remedy of each missing one, the engines, the store.
func Preflight(w io.Writer, report *provisionerv1.PreflightResponse) error {
	rows := [][]string{{"TOOL", "VERSION", "FOUND", "NEEDED FOR", "REMEDY"}}
	for _, tool := range report.GetTools() {
		found := orDash(tool.GetPath())
		if tool.GetPath() == "" {
			found = "missing"
			if tool.GetOptional() {
				found = "missing (optional)"
			}
		}
		rows = append(rows, []string{tool.GetName(), orDash(tool.GetVersion()), found, tool.GetNeededFor(), tool.GetRemedy()})
	}
	rows = append(rows, []string{""}, []string{"ENGINE", "MODE", "AVAILABLE", "MISSING"})
	if err := table(w, rows[:len(rows)-1]); err != nil {
		return err
	}
	engines := [][]string{rows[len(rows)-1]}
	for _, engine := range report.GetEngines() {
		engines = append(engines, []string{
			engine.GetKind(), mode(engine.GetMode()), yesNo()[engine.GetAvailable()], orDash(strings.Join(engine.GetMissingTools(), ", ")),
		})
	}
	if err := table(w, engines); err != nil {
		return err
	}
	store := report.GetStore()
	return table(w, [][]string{
		{""},
		{"store", store.GetPath()},
		{"free", Bytes(store.GetFreeBytes())},
		{"allowed roots", orDash(strings.Join(store.GetAllowedRoots(), ", "))},
		{"problem", orDash(store.GetProblem())},
	})
}
