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

// Activity is a page of metrics in Prometheus text format, and which of them add up to the requests in flight.
type Activity struct {
	Path   string
	Gauges []string // names; samples of one name with several label sets are added up too.
}

// InFlight returns the number of requests that the engine has, running or waiting. An error means that the number is
// not known, which is not zero: the page did not answer, or lacks one of the gauges.
func (p *Prober) InFlight(ctx context.Context, at netip.AddrPort, a Activity) (int, error) {
	got, err := p.get(ctx, at, a.Path)
	if err != nil {
		return 0, err
	}
	if got.status != http.StatusOK {
		return 0, fmt.Errorf("ask %s%s: answered %d", at, a.Path, got.status)
	}
	sum, err := sumGauges(got.body, a.Gauges)
	if err != nil {
		return 0, fmt.Errorf("read activity of %s%s: %w", at, a.Path, err)
	}
	return sum, nil
}

// sumGauges adds up all samples of the named metrics, each of which must be there.
func sumGauges(page []byte, names []string) (int, error) {
	sums := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(page))
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		name, value, ok := parseSample(lines.Text())
		if ok {
			sums[name] += value
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
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
