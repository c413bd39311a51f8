// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Platform is what wheels must fit.
type Platform struct {
	// Arch is the machine in the words of wheels: "x86_64", "aarch64". Empty means this machine's.
	Arch string
	// GlibcMinor is x of glibc 2.x. Zero means this machine's; where it has none, only portable wheels fit.
	GlibcMinor int
	// PythonMinor is x of Python 3.x. Zero means that only wheels fit which any Python 3 takes; of the stable ABI, any.
	PythonMinor int
}

func (p Platform) orThisMachine() Platform {
	if p.Arch == "" {
		p.Arch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	}
	if p.GlibcMinor == 0 {
		p.GlibcMinor = glibcMinor(p.Arch)
	}
	return p
}

// String names the platform in errors and keys.
func (p Platform) String() string {
	text := fmt.Sprintf("%s with glibc 2.%d", p.Arch, p.GlibcMinor)
	if p.PythonMinor > 0 {
		text += fmt.Sprintf(" and Python 3.%d", p.PythonMinor)
	}
	return text
}

// rank tells how well a file fits: 0 not at all, more is more specific. A wheel may carry several tags of each kind.
func (p Platform) rank(name string) int {
	stem, ok := strings.CutSuffix(name, ".whl")
	parts := strings.Split(stem, "-")
	if !ok || len(parts) < 5 {
		return 0
	}
	tags := parts[len(parts)-3:]
	python, system := 0, 0
	for _, interpreter := range strings.Split(tags[0], ".") {
		for _, abi := range strings.Split(tags[1], ".") {
			python = max(python, p.rankPython(interpreter, abi))
		}
	}
	for _, tag := range strings.Split(tags[2], ".") {
		system = max(system, p.rankSystem(tag))
	}
	if python == 0 || system == 0 {
		return 0
	}
	return python*1000 + system
}

func (p Platform) rankPython(interpreter, abi string) int {
	minor, err := strconv.Atoi(strings.TrimPrefix(interpreter, "cp3"))
	isCPython := strings.HasPrefix(interpreter, "cp3") && err == nil
	switch {
	case abi == "none" && strings.HasPrefix(interpreter, "py3"):
		return 1
	case !isCPython:
		return 0
	case abi == "abi3" && (p.PythonMinor == 0 || minor <= p.PythonMinor):
		return 2
	case p.PythonMinor == minor && (abi == interpreter || abi == "none"):
		return 3
	}
	return 0
}

func (p Platform) rankSystem(tag string) int {
	if tag == "any" {
		return 1
	}
	legacy := map[string]int{"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17, "linux": 0}
	family, ok := strings.CutSuffix(tag, "_"+p.Arch)
	if !ok || p.Arch == "" {
		return 0
	}
	needs, known := legacy[family]
	if version, ok := strings.CutPrefix(family, "manylinux_2_"); ok {
		minor, err := strconv.Atoi(version)
		needs, known = minor, err == nil
	}
	if !known || needs > p.GlibcMinor {
		return 0
	}
	return 2 + needs
}

// glibcMinor reads the version that this machine's C library states in its file, 0 where there is none.
func glibcMinor(arch string) int {
	for _, path := range []string{"/lib/" + arch + "-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, found := bytes.Cut(data, []byte("stable release version 2."))
		if !found {
			continue
		}
		end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if minor, err := strconv.Atoi(string(rest[:max(end, 0)])); err == nil {
			return minor
		}
	}
	return 0
}
