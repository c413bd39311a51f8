// SPDX-License-Identifier: Apache-2.0

package toolchain

// spec is what is known of a tool before it is looked for.
type spec struct {
	name      Name
	programs  []string // file names, best first
	neededFor string
	optional  bool
	minimum   string // version; empty means any
	apt, dnf  string // packages of Debian and Ubuntu, and of Fedora
	more      string // another way to get it
	probe     prober
}

// catalog lists the tools in the order of a Report.
func catalog() []spec {
	return []spec{
		{
			name: Git, programs: []string{"git"}, probe: probeVersion,
			neededFor: "building an engine from a git repository or bundle",
			minimum:   "2.20", apt: "git", dnf: "git",
		},
		{
			name: CMake, programs: []string{"cmake", "cmake3"}, probe: probeVersion,
			neededFor: "building an engine from source",
			minimum:   "3.14", apt: "cmake", dnf: "cmake", more: "pip install cmake",
		},
		{
			name: Ninja, programs: []string{"ninja", "ninja-build"}, probe: probeVersion,
			neededFor: "building an engine from source",
			apt:       "ninja-build", dnf: "ninja-build", more: "pip install ninja",
		},
		{
			name: CCache, programs: []string{"ccache"}, probe: probeVersion,
			neededFor: "building an engine again in seconds", optional: true,
			apt: "ccache", dnf: "ccache",
		},
		{
			name: CC, programs: []string{"cc", "gcc", "clang"}, probe: probeC,
			neededFor: "building an engine from source",
			apt:       "build-essential", dnf: "gcc",
		},
		{
			name: CXX, programs: []string{"c++", "g++", "clang++"}, probe: probeCXX,
			neededFor: "building an engine from source",
			apt:       "build-essential", dnf: "gcc-c++",
		},
		{
			name: Python, programs: []string{"python3"}, probe: probePython,
			neededFor: "engines that are Python packages",
			minimum:   "3.10", apt: "python3", dnf: "python3",
		},
	}
}

func (s spec) remedy() string {
	text := "install it: apt-get install " + s.apt + " (Debian, Ubuntu) or dnf install " + s.dnf + " (Fedora)"
	if s.more != "" {
		text += "; if that is too old: " + s.more
	}
	return text
}
