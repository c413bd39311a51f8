// SPDX-License-Identifier: Apache-2.0

// Package deploy_test checks what people install: that the unit files promise what the daemons rely on, that they go with
// the configuration beside them, and that systemd understands them.
package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

const (
	provisioner = "engine-provisioner"
	poolManager = "pool-managerd"
)

func daemons() []string { return []string{provisioner, poolManager} }

// TestUnitsPromise holds what the daemons, or the engines, cannot do without.
func TestUnitsPromise(t *testing.T) {
	t.Parallel()
	both := daemons()
	for _, tt := range []struct {
		units           []string
		directive, want string
		why             string
	}{
		{both, "Service.Type", "notify", "the daemons say when they serve"},
		{both, "Service.NotifyAccess", "main", "no engine and no tool may speak for the daemon"},
		{both, "Service.WatchdogSec", "30", "a daemon that is stuck is replaced"},
		{both, "Service.Restart", "always", "engines without an owner are the fault that this project is about"},
		{both, "Unit.StartLimitIntervalSec", "0", "five crashes in ten seconds must not leave engines without an owner"},
		{both, "Service.OOMPolicy", "continue", "the kernel kills one engine or tool, not the service"},
		{both, "Service.User", "roundhouse", "the store of one is what the other executes"},
		{both, "Service.RuntimeDirectory", "roundhouse", "both have their sockets there"},
		{both, "Service.RuntimeDirectoryPreserve", "yes", "the end of one must not take the other's socket away"},
		{both, "Service.NoNewPrivileges", "yes", "nothing that is started gets more rights"},
		{both, "Service.ProtectSystem", "strict", "nothing writes outside the folders that are named"},
		{both, "Service.CapabilityBoundingSet", "", "no part of root's power is needed"},
		{both, "Service.TasksMax", "infinity", "an engine has hundreds of threads"},
		{both, "Install.WantedBy", "multi-user.target", "they start with the machine"},
		{[]string{poolManager}, "Service.KillMode", "process", "engines outlive the daemon"},
		{[]string{poolManager}, "Service.LimitLOCKS", "infinity", "process marks each start below an unlimited hard limit"},
		{[]string{poolManager}, "Service.LimitMEMLOCK", "infinity", "weights may be locked into memory"},
		{[]string{poolManager}, "Service.LimitCORE", "0", "a core as large as a model delays the restart"},
		{[]string{provisioner}, "Service.KillMode", "mixed", "tools end with the provisioner"},
	} {
		for _, name := range tt.units {
			t.Run(name+"/"+tt.directive, func(t *testing.T) {
				t.Parallel()
				if got := readUnit(t, name+".service")[tt.directive]; !slices.Equal(got, []string{tt.want}) {
					t.Errorf("%s: %s=%q, want %q: %s", name, tt.directive, got, tt.want, tt.why)
				}
			})
		}
	}
}

// TestUnitsLetEnginesRun holds what must not be there.
func TestUnitsLetEnginesRun(t *testing.T) {
	t.Parallel()
	gpu := "hides the GPUs"
	shared := "the next daemon must share it with engines that outlived this one"
	for _, tt := range []struct {
		units     []string
		directive string
		why       string
	}{
		{daemons(), "PrivateDevices", gpu},
		{daemons(), "DeviceAllow", gpu},
		{daemons(), "DevicePolicy", gpu},
		{daemons(), "ProtectClock", gpu + ", for it brings a DeviceAllow"},
		{daemons(), "MemoryDenyWriteExecute", "GPU drivers write code"},
		{daemons(), "DynamicUser", "what it leaves running could not be touched by the next start"},
		{daemons(), "RestartPreventExitStatus", "a program in Go that panics, or is aborted by the watchdog, ends with code 2 as one with a wrong flag does"},
		{daemons(), "RestartForceExitStatus", "every end is followed by a start"},
		{daemons(), "ProtectProc", "identities are proven from /proc"},
		{daemons(), "ProcSubset", "sockets are found in /proc/net"},
		{[]string{poolManager}, "PrivateTmp", "temporary files would be deleted under engines"},
		{[]string{poolManager}, "PrivateIPC", shared},
		{[]string{poolManager}, "PrivateUsers", shared},
		{[]string{poolManager}, "PrivateNetwork", shared},
		{[]string{poolManager}, "PrivatePIDs", shared},
		{[]string{poolManager}, "ProtectKernelLogs", "the kernel's log tells which engine was killed for lack of memory"},
		{[]string{poolManager}, "OOMScoreAdjust", "engines would inherit it"},
		{[]string{poolManager}, "RemoveIPC", "engines that outlive the daemon would lose their memory"},
		{[]string{poolManager}, "BindsTo", "engines need no provisioner"},
		{[]string{poolManager}, "Requires", "engines need no provisioner"},
	} {
		for _, name := range tt.units {
			t.Run(name+"/"+tt.directive, func(t *testing.T) {
				t.Parallel()
				u := readUnit(t, name+".service")
				for _, section := range []string{"Unit", "Service"} {
					if got, there := u[section+"."+tt.directive]; there {
						t.Errorf("%s has %s=%q: %s", name, tt.directive, got, tt.why)
					}
				}
			})
		}
	}
}

// TestUnitsGoWithTheirConfiguration compares the folders that systemd makes with those that the configuration names.
func TestUnitsGoWithTheirConfiguration(t *testing.T) {
	t.Parallel()
	for _, name := range daemons() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := readUnit(t, name+".service")
			if want := []string{"/usr/bin/" + name + " --config /etc/roundhouse/" + name + ".yaml"}; !slices.Equal(u["Service.ExecStart"], want) {
				t.Errorf("ExecStart=%q, want %q", u["Service.ExecStart"], want)
			}
			if mains, err := filepath.Glob(filepath.Join(testkit.RepoRoot(t), "services", "*", "cmd", name, "main.go")); err != nil || len(mains) != 1 {
				t.Errorf("programs of that name: %v, %v", mains, err)
			}
			config, err := os.ReadFile(filepath.Join(folder(t), name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			state, _, _ := strings.Cut(strings.Join(u["Service.StateDirectory"], " "), " ")
			for _, want := range []string{
				"\nstate_dir: /var/lib/" + state + "\n",
				"\n  - unix:///run/" + u["Service.RuntimeDirectory"][0] + "/" + name + ".sock\n",
			} {
				if !strings.Contains(string(config), want) {
					t.Errorf("%s.yaml lacks %q, which is what the unit makes room for", name, want)
				}
			}
		})
	}
}

// TestStopsHaveTime compares the limits with each other: the default drain takes 30 s, and 3 min for engines that do not end.
func TestStopsHaveTime(t *testing.T) {
	t.Parallel()
	u := readUnit(t, poolManager+".service")
	seconds := func(directive string) int {
		t.Helper()
		n, err := strconv.Atoi(strings.Join(u["Service."+directive], ""))
		if err != nil {
			t.Fatalf("%s: %v", directive, err)
		}
		return n
	}
	if stop := seconds("TimeoutStopSec"); stop < 30+180 {
		t.Errorf("TimeoutStopSec=%d would cut off a drain, which takes up to 210 s", stop)
	}
	// A daemon that is stuck is gone after both, and its successor has the engines again.
	if abort, watchdog := seconds("TimeoutAbortSec"), seconds("WatchdogSec"); abort+watchdog > 60 {
		t.Errorf("WatchdogSec=%d and TimeoutAbortSec=%d leave engines without an owner for long", watchdog, abort)
	}
}

// TestSystemdUnderstandsTheUnits asks systemd-analyze where there is one, and else whether every directive is one that it
// has understood before.
func TestSystemdUnderstandsTheUnits(t *testing.T) {
	t.Parallel()
	known := strings.Fields(directives)
	for _, name := range daemons() {
		for directive := range readUnit(t, name+".service") {
			if !slices.Contains(known, directive) {
				t.Errorf("%s.service has %s: if systemd-analyze verify has nothing against it, add it to the list here", name, directive)
			}
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Logf("no systemd-analyze: %v", err)
		return
	}
	for _, name := range daemons() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			verify(t, analyze, name+".service")
		})
	}
}

// verify lets systemd read a copy of a unit, which starts a program that is there.
func verify(t *testing.T, analyze, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder(t), name))
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	installed := "=/usr/bin/" + strings.TrimSuffix(name, ".service") + " "
	if !strings.Contains(string(text), installed) {
		t.Fatalf("%s does not start %q", name, installed)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), installed, "="+program+" ")), 0o644); err != nil {
		t.Fatal(err)
	}
	// What it does not understand it ignores: the exit code is 0, so what counts is that it says nothing.
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify %s: %v\n%s", name, err, out)
	}
}

// directives are those that systemd 252 has understood.
const directives = `
Unit.Description Unit.Documentation Unit.Wants Unit.After Unit.StartLimitIntervalSec
Service.Type Service.NotifyAccess Service.ExecStart Service.WatchdogSec Service.TimeoutStartSec Service.TimeoutStopSec
Service.TimeoutAbortSec Service.Restart Service.RestartSec Service.KillMode
Service.User Service.UMask Service.StateDirectory Service.StateDirectoryMode Service.Environment Service.RuntimeDirectory
Service.RuntimeDirectoryPreserve Service.LimitLOCKS Service.LimitMEMLOCK Service.LimitNOFILE Service.LimitCORE
Service.TasksMax Service.OOMPolicy
Service.ProtectSystem Service.ReadWritePaths Service.ProtectHome Service.PrivateTmp Service.NoNewPrivileges
Service.CapabilityBoundingSet Service.ProtectKernelTunables Service.ProtectKernelModules Service.ProtectKernelLogs
Service.ProtectControlGroups Service.ProtectHostname Service.LockPersonality Service.RestrictSUIDSGID
Service.RestrictRealtime Service.RestrictNamespaces Service.RestrictAddressFamilies Service.SystemCallArchitectures
Service.SystemCallFilter Service.SystemCallErrorNumber
Install.WantedBy`
