// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Host is the machine, as far as builds depend on it.
type Host struct {
	// Arch is the architecture, as Go names it: amd64, arm64.
	Arch string
	// CPU describes the processor, for people.
	CPU string
	// CPUFingerprint tells processors apart for which "native" means different things.
	CPUFingerprint string
	// Cores is how many this process may use.
	Cores int
	// MemoryBytes is what could be used now without swapping, within the limit of this process's control group.
	MemoryBytes int64
}

// ReadHost reads what the kernel says. It starts nothing.
func ReadHost() (Host, error) {
	return readHost("/")
}

func readHost(root string) (Host, error) {
	cpuinfo, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return Host{}, fmt.Errorf("read host: %w", err)
	}
	meminfo, err := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return Host{}, fmt.Errorf("read host: %w", err)
	}
	h := Host{Arch: runtime.GOARCH, Cores: runtime.GOMAXPROCS(0)}
	h.CPU, h.CPUFingerprint = processor(cpuinfo)
	kib, err := strconv.ParseInt(strings.TrimSuffix(value(meminfo, "MemAvailable"), " kB"), 10, 64)
	if err != nil {
		return Host{}, fmt.Errorf("read host: available memory: %w", err)
	}
	h.MemoryBytes = min(kib<<10, groupLimit(root))
	return h, nil
}

// processor describes the first processor of cpuinfo.
func processor(cpuinfo []byte) (name, fingerprint string) {
	first, _, _ := bytes.Cut(cpuinfo, []byte("\n\n"))
	sum := sha256.New()
	for _, key := range []string{
		"vendor_id", "cpu family", "model", "model name", "flags", // x86
		"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", // ARM
	} {
		words := strings.Fields(value(first, key))
		slices.Sort(words)
		sum.Write([]byte(key + "=" + strings.Join(words, " ") + "\n"))
	}
	name = value(first, "model name")
	if name == "" {
		name = strings.TrimSpace("implementer " + value(first, "CPU implementer") + " part " + value(first, "CPU part"))
	}
	return name, hex.EncodeToString(sum.Sum(nil)[:16])
}

// value finds "key : value" in the kernel's listings.
func value(listing []byte, key string) string {
	for line := range strings.Lines(string(listing)) {
		k, v, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// groupLimit is the smallest memory limit of this process's control groups, or the largest number.
func groupLimit(root string) int64 {
	limit := int64(math.MaxInt64)
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return limit
	}
	for line := range strings.Lines(string(groups)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		var base, file string
		switch {
		case part[1] == "":
			base, file = "sys/fs/cgroup", "memory.max"
		case slices.Contains(strings.Split(part[1], ","), "memory"):
			base, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A parent's limit holds too. Inside a container the path is the host's, and only the root is there.
		for dir := filepath.Clean("/" + part[2]); ; dir = filepath.Dir(dir) {
			raw, err := os.ReadFile(filepath.Join(root, base, dir, file))
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && perr == nil {
				limit = min(limit, n)
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
