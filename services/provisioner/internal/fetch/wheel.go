// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// listLimit caps what an error lists.
const listLimit = 10

// simpleIndex is the JSON form of a project's page in a simple index.
type simpleIndex struct {
	Files    []indexFile `json:"files"`
	Versions []string    `json:"versions"`
}

type indexFile struct {
	Name   string            `json:"filename"`
	URL    string            `json:"url"`
	Hashes map[string]string `json:"hashes"`
}

// findWheel asks the simple index for the file of a version: the one of the sha256 that was asked for, else the wheel
// that fits this platform best.
func (f *Fetcher) findWheel(ctx context.Context, req Request) (artifact, error) {
	address := f.cfg.PyPIIndexURL + req.Ref.Package + "/"
	var index simpleIndex
	if err := f.getJSON(ctx, address, "application/vnd.pypi.simple.v1+json", req.Missing, &index); err != nil {
		return artifact{}, err
	}
	file, err := choose(req, index, f.cfg.Platform)
	if err != nil {
		return artifact{}, err
	}
	digest, err := store.ParseDigest(file.Hashes["sha256"])
	if err != nil {
		return artifact{}, reason.New(reason.UntrustedArtifact, fmt.Sprintf("the index gives no sha256 for %s", file.Name),
			reason.Remedy("use an index that gives sha256 digests"))
	}
	target, err := f.fileAddress(ctx, address, file.URL)
	if err != nil {
		return artifact{}, err
	}
	return artifact{name: file.Name, address: target, want: digest, missing: req.Missing}, nil
}

func choose(req Request, index simpleIndex, platform Platform) (indexFile, error) {
	var ofVersion []indexFile
	for _, file := range index.Files {
		if sameVersion(fileVersion(file.Name, req.Ref.Package), req.Ref.Version) {
			ofVersion = append(ofVersion, file)
		}
	}
	if len(ofVersion) == 0 {
		return indexFile{}, reason.New(req.Missing, fmt.Sprintf("%s has no version %s; among its versions are %s", req.Ref.Package, req.Ref.Version, lastFew(index.Versions)),
			reason.Meta("versions", lastFew(index.Versions)), reason.Remedy("name a version that the index has"))
	}
	if req.Archive != "" {
		return chooseByDigest(req, ofVersion)
	}
	best, bestRank := indexFile{}, 0
	for _, file := range ofVersion {
		if rank := platform.rank(file.Name); rank > bestRank {
			best, bestRank = file, rank
		}
	}
	if bestRank == 0 {
		return indexFile{}, reason.New(req.Missing, fmt.Sprintf("no wheel of %s fits %s; there is %s", req.Ref, platform, listFiles(ofVersion)),
			reason.Remedy("choose a package that has a wheel for this machine, or pin the sha256 of one"))
	}
	return best, nil
}

func chooseByDigest(req Request, files []indexFile) (indexFile, error) {
	for _, file := range files {
		if digest, err := store.ParseDigest(file.Hashes["sha256"]); err == nil && digest == req.Archive {
			return file, nil
		}
	}
	return indexFile{}, reason.New(reason.DigestMismatch, fmt.Sprintf("%s %s has no file of sha256 %s; the index has %s",
		req.Ref.Package, req.Ref.Version, req.Archive.Hex(), listFiles(files)),
		reason.Meta("want", req.Archive.Hex()), reason.Remedy("compare the version and the sha256 with the index"))
}

func listFiles(files []indexFile) string {
	var list []string
	for _, file := range files[:min(len(files), listLimit)] {
		list = append(list, file.Name+" "+file.Hashes["sha256"])
	}
	if len(files) > listLimit {
		list = append(list, fmt.Sprintf("and %d more", len(files)-listLimit))
	}
	return strings.Join(list, ", ")
}

func lastFew(versions []string) string {
	if len(versions) == 0 {
		return "none"
	}
	newestFirst := slices.SortedStableFunc(slices.Values(versions), func(a, b string) int { return compareVersions(b, a) })
	return strings.Join(newestFirst[:min(len(newestFirst), listLimit)], ", ")
}

// compareVersions orders by the numbers of dotted versions; what is no number counts as 0.
func compareVersions(a, b string) int {
	return slices.Compare(versionNumbers(a), versionNumbers(b))
}

func versionNumbers(version string) []int {
	var numbers []int
	for _, part := range strings.Split(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			n = 0
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// fileVersion returns the version in the name of a wheel or a source archive of dist, or "".
func fileVersion(name, dist string) string {
	if stem, ok := strings.CutSuffix(name, ".whl"); ok {
		if parts := strings.Split(stem, "-"); len(parts) >= 5 {
			return parts[1]
		}
		return ""
	}
	stem, ok := strings.CutSuffix(name, ".tar.gz")
	if !ok {
		stem, ok = strings.CutSuffix(name, ".zip")
	}
	at := strings.LastIndex(stem, "-")
	if !ok || at < 0 || normalDist(stem[:at]) != dist {
		return ""
	}
	return stem[at+1:]
}

// sameVersion compares as an index would for exact versions in their usual spelling; in file names "+" is "_".
func sameVersion(inName, asked string) bool {
	return strings.EqualFold(strings.ReplaceAll(inName, "_", "+"), strings.ReplaceAll(asked, "_", "+"))
}
