// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Activity is a page of metrics in Prometheus text format, and which of them tell what the engine has to do and has done.
// Samples of one name with several label sets are added up.
type Activity struct {
	Path     string
	Gauges   []string // names; together the requests in flight, running or waiting. Each must be on the page.
	Counters []string // names; together what grows while the engine gets on with its requests.
}

// Load is what an engine told about its work.
type Load struct {
	InFlight int
	// Counters is the sum of those that are on the page. A missing one is 0: some engines list a metric only once it counts.
	Counters    float64
	HasCounters bool // false: none of them is on the page, or Counters is no number; then Counters is 0.
}

// Activity asks once for how much the engine has to do and how far it has got. An error means that the requests in flight
// are not known, which is not zero: the page did not answer, or lacks one of the gauges.
func (p *Prober) Activity(ctx context.Context, at netip.AddrPort, a Activity) (Load, error) {
	got, err := p.get(ctx, at, a.Path)
	if err != nil {
		return Load{}, err
	}
	if got.status != http.StatusOK {
		return Load{}, fmt.Errorf("ask %s%s: answered %d", at, a.Path, got.status)
	}
	load, err := readLoad(got.body, a)
	if err != nil {
		return Load{}, fmt.Errorf("read activity of %s%s: %w", at, a.Path, err)
	}
	return load, nil
}

// InFlight is Activity for callers that need the number of requests only.
func (p *Prober) InFlight(ctx context.Context, at netip.AddrPort, a Activity) (int, error) {
	load, err := p.Activity(ctx, at, Activity{Path: a.Path, Gauges: a.Gauges})
	return load.InFlight, err
}

func readLoad(page []byte, a Activity) (Load, error) {
	sums, err := sumSamples(page)
	if err != nil {
		return Load{}, err
	}
	inFlight, err := sumGauges(sums, a.Gauges)
	if err != nil {
		return Load{}, err
	}
	load := Load{InFlight: inFlight}
	for _, name := range a.Counters {
		sum, ok := sums[name]
		load.Counters += sum
		load.HasCounters = load.HasCounters || ok
	}
	if math.IsNaN(load.Counters) || math.IsInf(load.Counters, 0) {
		load.Counters, load.HasCounters = 0, false
	}
	return load, nil
}

// sumSamples adds up all samples of each metric of a page.
func sumSamples(page []byte) (map[string]float64, error) {
	sums := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(page))
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		name, value, ok := parseSample(lines.Text())
		if ok {
			sums[name] += value
		}
	}
	return sums, lines.Err()
}

// sumGauges adds up the named metrics, each of which must be there.
func sumGauges(sums map[string]float64, names []string) (int, error) {
	var total float64
	for _, name := range names {
		sum, ok := sums[name]
		if !ok {
			return 0, fmt.Errorf("there is no metric %s", name)
		}
		total += sum
	}
	if len(names) == 0 || math.IsNaN(total) || total < 0 || total > math.MaxInt32 {
		return 0, fmt.Errorf("%v is no number of requests", total)
	}
	return int(math.Ceil(total)), nil
}

// parseSample reads "name 1", "name{label="a b"} 1.5" and either with a timestamp behind. Comments are none.
func parseSample(line string) (name string, value float64, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", 0, false
	}
	end := strings.IndexAny(line, "{ \t")
	if end <= 0 {
		return "", 0, false
	}
	name, rest := line[:end], line[end:]
	if rest[0] == '{' {
		shut := labelsEnd(rest)
		if shut < 0 {
			return "", 0, false
		}
		rest = rest[shut+1:]
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0, false
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	return name, value, err == nil
}

// labelsEnd finds the brace that ends a set of labels, whose values may hold braces and escaped quotes.
func labelsEnd(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == '}':
			return i
		}
	}
	return -1
}
