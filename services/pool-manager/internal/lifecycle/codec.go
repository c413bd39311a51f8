// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// specRecord is a spec as it is on disk. Names once used keep their meaning; durations are nanoseconds.
type specRecord struct {
	Prepare        json.RawMessage    `json:"prepare,omitempty"`
	PreparedID     string             `json:"prepared_id,omitempty"`
	Replicas       int                `json:"replicas"`
	Port           uint16             `json:"port,omitempty"`
	StartupTimeout time.Duration      `json:"startup_timeout,omitempty"`
	Restart        supervision.Policy `json:"restart"`
	Health         supervision.Health `json:"health"`
	Residency      registry.Residency `json:"residency"`
	IdleTimeout    time.Duration      `json:"idle_timeout,omitempty"`
	Priority       int                `json:"priority,omitempty"`
	Labels         map[string]string  `json:"labels,omitempty"`
}

func encodeSpec(s registry.Spec) ([]byte, error) {
	record := specRecord{
		PreparedID: s.PreparedID, Replicas: s.Replicas, Port: s.Port, StartupTimeout: s.StartupTimeout, Restart: s.Restart,
		Health: s.Health, Residency: s.Residency, IdleTimeout: s.IdleTimeout, Priority: s.Priority, Labels: s.Labels,
	}
	if s.Prepare != nil {
		text, err := protojson.Marshal(s.Prepare)
		if err != nil {
			return nil, fmt.Errorf("encode the spec of pool %s: %w", s.ID, err)
		}
		record.Prepare = text
	}
	return json.Marshal(record)
}

func decodeSpec(id registry.PoolID, text []byte) (registry.Spec, error) {
	var record specRecord
	if err := json.Unmarshal(text, &record); err != nil {
		return registry.Spec{}, fmt.Errorf("its spec: %w", err)
	}
	s := registry.Spec{
		ID: id, PreparedID: record.PreparedID, Replicas: record.Replicas, Port: record.Port,
		StartupTimeout: record.StartupTimeout, Restart: record.Restart.WithDefaults(), Health: record.Health.WithDefaults(),
		Residency: record.Residency, IdleTimeout: record.IdleTimeout, Priority: record.Priority, Labels: record.Labels,
	}
	if len(record.Prepare) > 0 {
		s.Prepare = &enginev1.PrepareSpec{}
		// What a later version has added is left out: the prepared engine, which counts, is beside it.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(record.Prepare, s.Prepare); err != nil {
			return registry.Spec{}, fmt.Errorf("its spec: %w", err)
		}
	}
	if s.Replicas < 1 || s.Prepare == nil && s.PreparedID == "" {
		return registry.Spec{}, fmt.Errorf("its spec asks for %d replicas of nothing", s.Replicas)
	}
	return s, nil
}

func encodeTrack(track supervision.Track, now time.Time) ([]byte, error) {
	return json.Marshal(track.Saving(now))
}

// decodeRecord fills a pool that is not known to anybody yet with what its record says.
func (p *pool) decodeRecord(record state.PoolRecord) error {
	spec, err := decodeSpec(p.id, record.Spec)
	if err != nil {
		return err
	}
	p.spec, p.edition, p.wanted, p.why, p.created = spec, record.Edition, record.Wanted, record.Reason, record.CreatedAt
	if len(record.Prepared) > 0 {
		p.prepared = &enginev1.PreparedEngine{}
		if err := proto.Unmarshal(record.Prepared, p.prepared); err != nil {
			return fmt.Errorf("its prepared engine: %w", err)
		}
	}
	if p.wanted && p.prepared == nil {
		return fmt.Errorf("it is wanted and has no prepared engine")
	}
	if f := record.Failure; f != nil {
		p.failure = &registry.Failure{Reason: enginev1.Reason(enginev1.Reason_value[f.Reason]), Message: f.Message, At: f.At}
	}
	now, sameBoot := p.pools.config.Now(), record.BootID == p.pools.config.BootID
	p.rebooted = !sameBoot
	p.views = make([]registry.Replica, spec.Replicas)
	for index := range p.views {
		p.views[index] = registry.Replica{ID: p.id.Replica(index), Index: index, State: registry.ReplicaStopped}
	}
	for _, replica := range record.Replicas {
		var track supervision.Track
		if err := json.Unmarshal(replica.Track, &track); err != nil {
			return fmt.Errorf("supervision of its replica %d: %w", replica.Index, err)
		}
		p.generations[replica.Index] = replica.Generation
		p.tracks[replica.Index] = track.Resume(now, sameBoot)
		p.loadTimes[replica.Index] = replica.LoadTime
		if replica.Index < len(p.views) {
			p.views[replica.Index].Generation = replica.Generation
			p.views[replica.Index].Supervision = p.tracks[replica.Index].Status()
		}
	}
	durable := p.made
	p.keeper.durable = &durable
	return nil
}
