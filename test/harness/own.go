// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Signal sends a signal to an engine of the node.
func Signal(tb testing.TB, replica *poolv1.Replica, sig syscall.Signal) {
	tb.Helper()
	if pid := int(replica.GetPid()); pid <= 1 {
		tb.Fatalf("replica %v has no process", replica)
	} else if err := syscall.Kill(pid, sig); err != nil {
		tb.Fatalf("send %v to %d: %v", sig, pid, err)
	}
}

// Reloaded is what a Reload has told.
type Reloaded struct {
	Phases []poolv1.ReloadPhase
	// Result is nil after an error.
	Result *poolv1.ReloadResult
	Err    error
}

// Reload calls Reload and returns when the stream has ended.
func (n *Node) Reload(ctx context.Context, request *poolv1.ReloadRequest) Reloaded {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var reloaded Reloaded
	stream, err := n.Pools.Reload(ctx, request)
	if err != nil {
		reloaded.Err = err
		return reloaded
	}
	reloaded.Err = drainStream(stream, func(message *poolv1.ReloadResponse) {
		switch event := message.GetEvent().(type) {
		case *poolv1.ReloadResponse_Phase:
			reloaded.Phases = append(reloaded.Phases, event.Phase)
		case *poolv1.ReloadResponse_Result:
			reloaded.Result = event.Result
		}
	})
	return reloaded
}

// DrainNode calls DrainNode and returns what it has told, by pool, and the sum, when the stream has ended.
func (n *Node) DrainNode(ctx context.Context, request *poolv1.DrainNodeRequest) (map[string]*poolv1.PoolDrained, *poolv1.DrainNodeResult, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	stream, err := n.Pools.DrainNode(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	pools := map[string]*poolv1.PoolDrained{}
	var sum *poolv1.DrainNodeResult
	err = drainStream(stream, func(message *poolv1.DrainNodeResponse) {
		switch event := message.GetEvent().(type) {
		case *poolv1.DrainNodeResponse_Pool:
			pools[event.Pool.GetPoolId()] = event.Pool
		case *poolv1.DrainNodeResponse_Result:
			sum = event.Result
		}
	})
	return pools, sum, err
}

// Starts are how the starts of a pool's engines have ended, newest first.
func (n *Node) Starts(tb testing.TB, pool string) []*poolv1.Start {
	tb.Helper()
	answer, err := n.Pools.ListStarts(tb.Context(), &poolv1.ListStartsRequest{PoolId: pool})
	if err != nil {
		tb.Fatalf("ListStarts of %s: %v", pool, err)
	}
	return answer.GetStarts()
}

// MetricsFlags are the flags with which a pool manager lets its metrics be read.
func (n *Node) MetricsFlags() []string {
	return []string{"--metrics-listen", "unix://" + n.Path("metrics.sock")}
}

// Metrics reads the pool manager's metrics, by name with labels.
func (n *Node) Metrics(tb testing.TB) map[string]float64 {
	tb.Helper()
	text, err := n.scrape(tb.Context())
	if err != nil {
		tb.Fatalf("read metrics: %v", err)
	}
	series := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if name != strings.TrimSpace(line) {
			name += "}"
		} else {
			name, value, _ = strings.Cut(name, " ")
		}
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			series[name] = number
		}
	}
	return series
}

func (n *Node) scrape(ctx context.Context) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Path("metrics.sock"))
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://metrics/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(text), err
}

// Files is how many files the daemon has open.
func (d *Daemon) Files(tb testing.TB) int {
	tb.Helper()
	open := names(procPath(d.PID(), "fd"))
	if len(open) == 0 {
		tb.Errorf("the files of %s cannot be seen", d.Name)
	}
	return len(open)
}

// MemoryGroup makes a group of processes that may have so much memory, and returns how to put a process into it. The error says
// why this machine does not let us.
func MemoryGroup(tb testing.TB, bytes int64) (enter func(pid int) error, err error) {
	tb.Helper()
	parent, limit, err := memoryGroups()
	if err != nil {
		return nil, err
	}
	group, err := os.MkdirTemp(parent, "roundhouse-test-") //nolint:usetesting // groups lie where the kernel has them
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			tb.Errorf("remove the group: %v", err)
		}
	})
	if err := os.WriteFile(filepath.Join(group, limit), []byte(strconv.FormatInt(bytes, 10)), 0o600); err != nil {
		return nil, err
	}
	return func(pid int) error {
		return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600)
	}, nil
}

// memoryGroups is the folder of our own memory group, and the file of its limit.
func memoryGroups() (folder, limit string, err error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.SplitN(strings.TrimSpace(line), ":", 3); len(fields) == 3 && fields[1] == "memory" {
			return filepath.Join("/sys/fs/cgroup/memory", fields[2]), "memory.limit_in_bytes", nil
		}
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err != nil || !strings.Contains(string(controllers), "memory") {
		return "", "", fmt.Errorf("no group of memory can be made here (%q, %w)", controllers, err)
	}
	return "/sys/fs/cgroup", "memory.max", nil
}
