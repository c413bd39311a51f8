// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// killedExit is an end by KILL.
var killedExit = ExitStatus{Code: CodeUnknown, Signal: syscall.SIGKILL}

// gap in a log is where some were lost.
const gap = "gap"

// fakeLog returns a log that has what add is given.
func fakeLog() (log *kernelLog, add func(records ...string)) {
	var pending []string
	read := func(b []byte) (int, error) {
		if len(pending) == 0 {
			return 0, unix.EAGAIN
		}
		next := pending[0]
		pending = pending[1:]
		if next == gap {
			return 0, unix.EPIPE
		}
		return copy(b, next), nil
	}
	return &kernelLog{read: read}, func(records ...string) { pending = append(pending, records...) }
}

// killedRecord is how a kernel 6 logs a kill.
func killedRecord(seq, pid int) string {
	return fmt.Sprintf("3,%d,99,-;Memory cgroup out of memory: Killed process %d (engine) total-vm:1kB, anon-rss:1kB\n SUBSYSTEM=x\n", seq, pid)
}

func writeCounter(t testing.TB, path string, kills int) {
	t.Helper()
	if err := os.WriteFile(path, fmt.Appendf(nil, "low 0\nhigh 0\nmax 7\noom 7\noom_kill %d\noom_group_kill 0\n", kills), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOOMEvidence(t *testing.T) {
	t.Parallel()
	const root, member, stranger = 100, 101, 200
	kill, unknown := killedExit, ExitStatus{Code: CodeUnknown}
	for _, tt := range []struct {
		name    string
		log     []string // since the start; nil: the log may not be read.
		kills   int      // counted since the start; -1: there is no counter.
		exit    ExitStatus
		want    bool
		waiting time.Duration
	}{
		{"the log names the root", []string{killedRecord(5, root)}, 1, kill, true, 0},
		{"the log names a member", []string{"6,5,1,-;x\n", killedRecord(6, member)}, 1, kill, true, 0},
		{"the log alone", []string{killedRecord(5, root)}, -1, kill, true, 0},
		{"the log names a stranger", []string{killedRecord(5, stranger)}, 0, kill, false, 0},
		{"a stranger in our group", []string{killedRecord(5, stranger)}, 1, kill, false, oomLag},
		{"the log names it, how it ended is not known", []string{killedRecord(5, root)}, 1, unknown, true, 0},
		{"the log names a member only, how it ended is not known", []string{killedRecord(5, member)}, 1, unknown, false, oomLag},
		{"nothing happened", []string{}, 0, kill, false, 0},
		{"it was before our time", []string{killedRecord(4, root)}, 0, kill, false, 0},
		{"somebody else wrote it", []string{"12" + killedRecord(5, root)[1:]}, 0, kill, false, 0},
		{"it ended of another signal", []string{killedRecord(5, root)}, 1, ExitStatus{Code: CodeUnknown, Signal: syscall.SIGTERM}, false, 0},
		{"it ended itself", []string{killedRecord(5, member)}, 1, ExitStatus{Code: 0}, false, 0},
		{"the counter alone", nil, 1, kill, true, 0},
		{"the counter stands still", nil, 0, kill, false, 0},
		{"the counter alone, how it ended is not known", nil, 1, unknown, false, 0},
		{"no source at all", nil, -1, kill, false, 0},
		{"lost records and a counter", []string{gap, "6,9,1,-;x\n"}, 1, kill, true, 0},
		{"lost records at the end and a counter", []string{gap}, 1, kill, true, 0},
		{"lost records and a still counter", []string{gap, "6,9,1,-;x\n"}, 0, kill, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				counter := filepath.Join(dir, "group/memory.events")
				o := &oomSources{explained: map[string]uint64{}, cgroups: cgroups{v2: cgroupMount{point: dir, root: "/"}}}
				if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::/group\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(filepath.Dir(counter), 0o700); err != nil {
					t.Fatal(err)
				}
				if tt.kills >= 0 {
					writeCounter(t, counter, 3)
				}
				var add func(...string)
				if tt.log != nil {
					o.log, add = fakeLog()
					add("6,4,1,-;before\n")
				}
				base := o.baseline(filepath.Join(dir, "cgroup"))
				if tt.log != nil {
					add(tt.log...)
				}
				if tt.kills >= 0 {
					writeCounter(t, counter, 3+tt.kills)
				}
				begun := time.Now()
				if got := o.killed(base, root, []int{root, member}, tt.exit); got != tt.want {
					t.Errorf("killed: got %t, want %t", got, tt.want)
				}
				if waited := time.Since(begun); waited != tt.waiting {
					t.Errorf("waited %v, want %v", waited, tt.waiting)
				}
			})
		})
	}
}

// TestOOMIsLoggedLate has the kernel count and kill first, and log a moment later.
func TestOOMIsLoggedLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		counter := filepath.Join(t.TempDir(), "memory.events")
		writeCounter(t, counter, 1)
		begun := time.Now()
		log := &kernelLog{read: func(b []byte) (int, error) {
			if time.Since(begun) < oomLag/2 {
				return 0, unix.EAGAIN
			}
			begun = time.Now()
			return copy(b, killedRecord(7, 100)), nil
		}}
		o := &oomSources{log: log, explained: map[string]uint64{}}
		if !o.killed(oomBaseline{counter: counter}, 100, nil, killedExit) {
			t.Error("a kill that was logged late is not seen")
		}
	})
}

// TestOneKillExplainsOneEnd has two engines in one group, one of which the kernel killed.
func TestOneKillExplainsOneEnd(t *testing.T) {
	t.Parallel()
	counter := filepath.Join(t.TempDir(), "memory.events")
	o := &oomSources{explained: map[string]uint64{}}
	b := oomBaseline{counter: counter, kills: 2}
	writeCounter(t, counter, 3)
	first, second := o.killed(b, 100, nil, killedExit), o.killed(b, 200, nil, killedExit)
	if !first || second {
		t.Errorf("two ends and one kill: got %t, %t, want true, false", first, second)
	}
	writeCounter(t, counter, 4)
	if !o.killed(b, 300, nil, killedExit) {
		t.Error("the next kill explains nothing")
	}
}

func TestKilledLines(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want []victim
	}{
		{"Out of memory: Killed process 42 (llm server) total-vm:9kB, anon-rss:1kB, UID:0 pgtables:1kB oom_score_adj:0", []victim{{7, 42}}},
		{"Memory cgroup out of memory: Killed process 42 (e) total-vm:9kB", []victim{{7, 42}}},
		{"Out of memory (oom_kill_allocating_task): Killed process 42 (e) total-vm:9kB", []victim{{7, 42}}},
		{"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=e,pid=42,uid=0", nil},
		{"oom_reaper: reaped process 42 (e), now anon-rss:0kB", nil},
		{"x: Out of memory: Killed process 42 (e)", nil},
		{"Out of memory: Killed process 99999999999999999999 (e)", nil},
	} {
		t.Run(tt.text, func(t *testing.T) {
			t.Parallel()
			log, add := fakeLog()
			add("3,7,1,-,caller=T1;" + tt.text + "\n")
			if got := log.news(); fmt.Sprint(got.victims) != fmt.Sprint(tt.want) || got.seq != 7 {
				t.Errorf("news: got %+v, want %v", got, tt.want)
			}
		})
	}
}

func TestKernelLogKeepsTheNewest(t *testing.T) {
	t.Parallel()
	log, add := fakeLog()
	for i := range victimsKept + 10 {
		add("torn", killedRecord(i+1, 1000+i))
	}
	news := log.news()
	if len(news.victims) != victimsKept || !news.names([]int{1000 + victimsKept + 9}, 0) || news.names([]int{1009}, 0) {
		t.Errorf("victims: %d, first %+v; want the newest %d", len(news.victims), news.victims[0], victimsKept)
	}
	log.read = func([]byte) (int, error) { return 0, unix.ENODEV }
	if news := log.news(); !news.lostSince(news.seq) {
		t.Error("a log that cannot be read any more counts as complete")
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(killedRecord(1, 2)))
	f.Fuzz(func(t *testing.T, record []byte) {
		if _, text, ok := parseRecord(record); !ok && len(text) > 0 && strings.Count(string(record), ",") < 2 {
			t.Errorf("parseRecord(%q): a text without a number", record)
		}
	})
}

func TestOpenKernelLogNeedsOurNumbers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, space string
		log, want   bool
	}{
		{"first namespace", firstPIDNamespace, true, true},
		{"a container's", "pid:[4026532000]", true, false},
		{"no log", firstPIDNamespace, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			if err := errors.Join(os.MkdirAll(filepath.Join(root, "proc/self/ns"), 0o700), os.Mkdir(filepath.Join(root, "dev"), 0o700),
				os.Symlink(tt.space, filepath.Join(root, "proc/self/ns/pid"))); err != nil {
				t.Fatal(err)
			}
			if tt.log {
				if err := os.WriteFile(filepath.Join(root, "dev/kmsg"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := openKernelLog(root) != nil; got != tt.want {
				t.Errorf("open: got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestFindCounter(t *testing.T) {
	t.Parallel()
	const v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	const v1 = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /cg/unified rw - cgroup2 none rw\n"
	for _, tt := range []struct{ name, mounts, group, want string }{
		{"v2", v2, "0::/system.slice/pool.service\n", "/sys/fs/cgroup/system.slice/pool.service/memory.events"},
		{"v1", v1, "5:cpu:/c\n4:memory:/m/x\n0::/\n", "/cg/memory/m/x/memory.oom_control"},
		{"v1 with others on one mount", strings.ReplaceAll(v1, "rw,memory", "rw,cpuset,memory"), "4:cpuset,memory:/m\n", "/cg/memory/m/memory.oom_control"},
		{"v1 mounted from a group", strings.ReplaceAll(v1, "0:32 / ", "0:32 /docker/a "), "4:memory:/docker/a/b\n", "/cg/memory/b/memory.oom_control"},
		{"v1 mounted from another group", strings.ReplaceAll(v1, "0:32 / ", "0:32 /docker/a "), "4:memory:/docker/b\n", ""},
		{"outside of our namespace", v2, "0::/../../other\n", ""},
		{"memory of no mount", v2, "4:memory:/m\n", ""},
		{"no mounts", "", "0::/x\n", ""},
		{"odd lines", "x\n- - -\n" + v2, "x\n0::/a:b\n", "/sys/fs/cgroup/a:b/memory.events"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			mounts, group := filepath.Join(dir, "mountinfo"), filepath.Join(dir, "cgroup")
			if err := errors.Join(os.WriteFile(mounts, []byte(tt.mounts), 0o600), os.WriteFile(group, []byte(tt.group), 0o600)); err != nil {
				t.Fatal(err)
			}
			if got := findCgroups(mounts).counterOf(group); got != tt.want {
				t.Errorf("counter: got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadKills(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 12\n": "12",
		"max 1\noom 2\noom_kill 3\noom_group_kill 4\n":   "3",
		"oom_kill x\n": "error", "oom 1\n": "error", "": "error",
	} {
		path := filepath.Join(t.TempDir(), "counter")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := "error"
		if kills, err := readKills(path); err == nil {
			got = strconv.FormatUint(kills, 10)
		}
		if got != want {
			t.Errorf("kills in %q: got %s, want %s", text, got, want)
		}
	}
}

// groupLimit is more than a test's manager needs, and less than its engine takes.
const groupLimit = 160 << 20

// smallGroup makes a memory cgroup below our own and returns its folder, or tells why this machine does not let us.
func smallGroup(t *testing.T) (string, error) {
	t.Helper()
	counter := newOOMSources("/").cgroups.counterOf("/proc/self/cgroup")
	if counter == "" {
		return "", errors.New("we are in none")
	}
	dir := filepath.Join(filepath.Dir(counter), "roundhouse-test-"+NewNonce())
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("a process is left in the group: %v", err)
		}
	})
	limit := "memory.max"
	if filepath.Base(counter) == "memory.oom_control" {
		limit = "memory.limit_in_bytes"
	}
	return dir, os.WriteFile(filepath.Join(dir, limit), []byte(strconv.Itoa(groupLimit)), 0o600)
}

// manageOOM has an engine that takes more memory than its group may have, and tells how it ended.
func manageOOM(h *Host, dir, source string) error {
	if source == "counter" {
		h.oom.log = nil
	}
	if source == "log" {
		h.oom.cgroups = cgroups{}
	}
	for _, s := range []processtest.Script{{Grow: 2 * groupLimit}, {End: &processtest.End{Signal: syscall.SIGKILL}}} {
		exe, args, err := processtest.Command(s)
		if err != nil {
			return err
		}
		p, err := h.Spawn(Command{
			Executable: exe, Args: args, Nonce: NewNonce(), LogPath: filepath.Join(dir, "engine.log"), OOMScoreAdj: 1000,
		})
		if err != nil {
			return err
		}
		<-p.Done()
		fmt.Println(p.Exit())
	}
	return nil
}

// TestKernelKillsForMemory has the kernel kill an engine where we may make a memory cgroup; where not, TestOOMEvidence
// alone stands for it. The second engine of each manager is killed by somebody else.
func TestKernelKillsForMemory(t *testing.T) {
	t.Parallel()
	sources := []string{"any"}
	kernel := newOOMSources("/")
	if kernel.log != nil {
		sources = append(sources, "log")
	}
	if _, err := readKills(kernel.cgroups.counterOf("/proc/self/cgroup")); err == nil {
		sources = append(sources, "counter")
	}
	for _, source := range sources {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			group, err := smallGroup(t)
			if err != nil {
				t.Logf("no memory cgroup can be made here: %v", err)
				return
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			out := filepath.Join(dir, "out")
			manager := spawn(t, newHost(t), Command{
				Executable: "/bin/sh", Env: os.Environ(), Nonce: NewNonce(), LogPath: out,
				Args: []string{"-c", `echo $$ > "$1" && shift && exec "$@"`, "sh", filepath.Join(group, "cgroup.procs"), exe, managerMark, dir, "oom by " + source},
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			select {
			case <-manager.Done():
			case <-ctx.Done():
				t.Error("the manager does not end")
			}
			text, err := os.ReadFile(out)
			if want := "killed for lack of memory\nsignal killed\n"; err != nil || string(text) != want {
				t.Errorf("manager: %v, said %q, %v, want %q", manager.Exit(), text, err, want)
			}
		})
	}
}
