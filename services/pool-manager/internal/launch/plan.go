// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// libraryPath is the variable that names folders of shared libraries.
const libraryPath = "LD_LIBRARY_PATH"

// plan is a prepared engine as it is understood here: what is started, and how it is stopped.
type plan struct {
	args []string
	env  []string
	stop process.Policy
}

// understand refuses a prepared engine that could not be started as it says, proven to be ours (G6) or stopped.
func understand(base []string, request Request) (plan, error) {
	launch, contract := request.Prepared.GetProcess(), request.Prepared.GetContract()
	if path := contract.GetReady().GetPath(); !strings.HasPrefix(path, "/") {
		return plan{}, notUnderstood(fmt.Sprintf("its page of readiness is %q", path))
	}
	if identity := contract.GetIdentity(); !strings.HasPrefix(identity.GetField().GetPath(), "/") || identity.GetExpected() == "" {
		return plan{}, notUnderstood("it cannot prove which model it serves")
	}
	args, err := arguments(launch.GetArgs(), request.Port)
	if err != nil {
		return plan{}, err
	}
	env, err := environment(base, launch)
	if err != nil {
		return plan{}, err
	}
	stop, err := stopPolicy(contract.GetStop())
	return plan{args: args, env: env, stop: stop}, err
}

// arguments fills in what only we know. A placeholder of a later contract is refused, not passed on.
func arguments(args []*enginev1.Argument, port uint16) ([]string, error) {
	words := make([]string, len(args))
	for i, arg := range args {
		switch value := arg.GetValue().(type) {
		case *enginev1.Argument_Literal:
			words[i] = value.Literal
		case *enginev1.Argument_Placeholder:
			switch value.Placeholder {
			case enginev1.Placeholder_PLACEHOLDER_HOST:
				words[i] = loopback().String()
			case enginev1.Placeholder_PLACEHOLDER_PORT:
				words[i] = strconv.Itoa(int(port))
			default:
				return nil, notUnderstood(fmt.Sprintf("argument %d is %s", i, value.Placeholder))
			}
		default:
			return nil, notUnderstood(fmt.Sprintf("argument %d is empty", i))
		}
		if strings.Contains(words[i], "\x00") {
			return nil, notUnderstood(fmt.Sprintf("argument %d has a NUL byte", i))
		}
	}
	return words, nil
}

// environment is base, overruled by what the engine's launch says, with its libraries looked for first. No name comes
// twice, since programs differ in which of two they take.
func environment(base []string, launch *enginev1.ProcessLaunch) ([]string, error) {
	values := make(map[string]string, len(base))
	for _, entry := range base {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	for name, value := range launch.GetEnv() {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") || process.Reserved(name) {
			return nil, notUnderstood(fmt.Sprintf("environment variable %q", name))
		}
		values[name] = value
	}
	if paths := slices.Clone(launch.GetLibraryPaths()); len(paths) > 0 {
		if more := values[libraryPath]; more != "" {
			paths = append(paths, more)
		}
		values[libraryPath] = strings.Join(paths, ":")
	}
	env := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		env = append(env, name+"="+values[name])
	}
	return env, nil
}

// stopPolicy reads a contract's stop protocol.
func stopPolicy(steps []*enginev1.StopStep) (process.Policy, error) {
	var policy process.Policy
	for _, step := range steps {
		signal, wait := unix.SignalNum(step.GetSignal()), step.GetWait().AsDuration()
		if signal == 0 || wait < 0 {
			return process.Policy{}, notUnderstood(fmt.Sprintf("stop step %q for %s", step.GetSignal(), wait))
		}
		policy.Steps = append(policy.Steps, process.Step{Signal: signal, Wait: wait})
	}
	return policy, nil
}

// patience is how long the steps of a stop protocol may take.
func patience(policy process.Policy) time.Duration {
	var sum time.Duration
	for _, step := range policy.Steps {
		sum += step.Wait
	}
	return sum
}

func notUnderstood(what string) error {
	return reason.New(reason.WorkerStartFailed, "the prepared engine is not understood: "+what,
		reason.Remedy("use a pool manager at least as new as the provisioner"))
}
