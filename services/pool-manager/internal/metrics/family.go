// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// other is the label of what is not in a family's list.
const other = "other"

// family is a metric with one label, whose values are a list that never grows. All its series are there from the
// beginning.
type family[T any] struct {
	prometheus.Collector

	byName map[string]T
}

// of returns the series of a name, or that of other.
func (f family[T]) of(name string) T {
	if one, ok := f.byName[name]; ok {
		return one
	}
	return f.byName[other]
}

func newFamily[T any](all prometheus.Collector, with func(...string) T, names []string) family[T] {
	f := family[T]{Collector: all, byName: map[string]T{other: with(other)}}
	for _, name := range names {
		f.byName[name] = with(name)
	}
	return f
}

func newCounters(name, help, label string, names []string) family[prometheus.Counter] {
	vector := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, []string{label})
	return newFamily(vector, vector.WithLabelValues, names)
}

func newHistograms(name, help string, bounds []float64, label string, names []string) family[prometheus.Observer] {
	vector := prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: bounds}, []string{label})
	return newFamily(vector, vector.WithLabelValues, names)
}

func newCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
}

func newHistogram(name, help string, bounds []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: bounds})
}

// enumNames returns the values of an enum of the contract as labels, in order, without some of them.
func enumNames(prefix string, names map[int32]string, without ...int32) []string {
	var labels []string
	for _, number := range slices.Sorted(maps.Keys(names)) {
		if !slices.Contains(without, number) {
			labels = append(labels, lowerName(prefix, names[number]))
		}
	}
	return labels
}

// lowerName makes a label of the name of a value: disk_full of REASON_DISK_FULL.
func lowerName(prefix, name string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }

// text makes a label of what others wrote: a label that is not UTF-8 would spoil the scrape.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
