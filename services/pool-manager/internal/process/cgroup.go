// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroups is where the groups lie that count memory. A mount that is not there has an empty point.
type cgroups struct {
	v1, v2 cgroupMount
}

type cgroupMount struct {
	point string // where it is mounted.
	root  string // which group is seen there.
}

// findCgroups reads a table of mounts, as /proc/self/mountinfo. Where it cannot be read, there are none.
func findCgroups(mountinfo string) cgroups {
	var found cgroups
	f, err := os.Open(mountinfo)
	if err != nil {
		return found
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		const root, point = 3, 4 // 36 35 98:0 ROOT POINT rw shared:1 - TYPE SOURCE OPTIONS.
		head, tail, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if len(fields) <= point || len(kind) < 3 {
			continue
		}
		mount := cgroupMount{point: fields[point], root: fields[root]}
		switch {
		case kind[0] == "cgroup2" && found.v2.point == "":
			found.v2 = mount
		case kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), "memory"):
			found.v1 = mount
		}
	}
	return found
}

// counterOf returns the file that counts the kills in the group of a process, whose /proc/PID/cgroup is given; nothing if
// there is none.
func (c cgroups) counterOf(cgroupFile string) string {
	text, err := os.ReadFile(cgroupFile)
	if err != nil {
		return ""
	}
	counter := ""
	for line := range strings.Lines(string(text)) { // "4:memory:/path" or "0::/path".
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch {
		case slices.Contains(strings.Split(fields[1], ","), "memory"):
			return c.v1.file(fields[2], "memory.oom_control")
		case fields[0] == "0":
			counter = c.v2.file(fields[2], "memory.events")
		}
	}
	return counter
}

// file returns the path of a group's file, or nothing for a group that is not seen at the mount.
func (m cgroupMount) file(group, name string) string {
	below, err := filepath.Rel(m.root, group)
	if m.point == "" || err != nil || strings.HasPrefix(below, "..") || strings.HasPrefix(group, "/..") {
		return ""
	}
	return filepath.Join(m.point, below, name)
}

// readKills returns how many processes of a group the kernel has killed for lack of memory.
func readKills(counter string) (uint64, error) {
	if counter == "" {
		return 0, errors.New("no memory cgroup")
	}
	text, err := os.ReadFile(counter)
	if err != nil {
		return 0, fmt.Errorf("read kills: %w", err)
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			kills, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read kills in %s: %w", counter, err)
			}
			return kills, nil
		}
	}
	return 0, fmt.Errorf("read kills: %s has none", counter)
}
