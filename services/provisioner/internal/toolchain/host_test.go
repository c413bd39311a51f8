// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"os"
	"path/filepath"
	"testing"
)

// tree writes files below a new folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const meminfo = "MemTotal:       2048 kB\nMemAvailable:    1024 kB\n"

func TestReadHostMemory(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"no groups", nil, 1024 << 10},
		{"v2", map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "4096\n"}, 4096},
		{"v2, limit of the parent", map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "8192\n",
		}, 8192},
		{"v1", map[string]string{
			"proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/y\n", "sys/fs/cgroup/memory/y/memory.limit_in_bytes": "16384\n",
		}, 16384},
		{"container that sees only the root", map[string]string{
			"proc/self/cgroup": "0::/../../pod\n", "sys/fs/cgroup/memory.max": "2048\n",
		}, 2048},
		{"larger than what is there", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "99999999999\n",
		}, 1024 << 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{"proc/cpuinfo": "", "proc/meminfo": meminfo}
			for name, text := range tt.files {
				files[name] = text
			}
			got, err := readHost(tree(t, files))
			if err != nil || got.MemoryBytes != tt.want {
				t.Errorf("memory is %d (%v), want %d", got.MemoryBytes, err, tt.want)
			}
		})
	}
}

func TestProcessor(t *testing.T) {
	t.Parallel()
	const x86 = "processor: 0\nmodel name\t: EPYC\nflags\t\t: avx avx2\ncpu MHz\t: 2000\n\nprocessor: 1\nmodel name: other\n"
	name, print := processor([]byte(x86))
	if name != "EPYC" {
		t.Errorf("name is %q", name)
	}
	tests := []struct {
		name, cpuinfo string
		same          bool
	}{
		{"other speed and order of flags", "processor: 0\nmodel name: EPYC\nflags: avx2 avx\ncpu MHz: 3000\n", true},
		{"other flags", "processor: 0\nmodel name: EPYC\nflags: avx avx2 avx512f\n", false},
		{"other model", "processor: 0\nmodel name: Xeon\nflags: avx avx2\n", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, got := processor([]byte(tt.cpuinfo)); (got == print) != tt.same {
				t.Errorf("fingerprint %s and %s: same %t, want %t", got, print, got == print, tt.same)
			}
		})
	}
	if name, _ := processor([]byte("CPU implementer: 0x41\nCPU part: 0xd40\n")); name != "implementer 0x41 part 0xd40" {
		t.Errorf("name is %q", name)
	}
}
