// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"cmp"
	"reflect"
	"strings"
	"sync"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// offers remembers whose the handoff file of each replica is: while an engine takes the place of another they share a
// replica, and the end of the old one must not remove what the new one has offered.
type offers struct {
	mu sync.Mutex // mu guards what follows, and is not held while a file is written or removed.
	of map[registry.ReplicaID]*offer
}

// offer is one file.
type offer struct {
	// turn holds a value while nobody changes the file. It is waited for without a lock, for files may be slow.
	turn chan struct{}
	// users have the turn or wait for it.
	users int
	offered
}

// offered is what a file holds.
type offered struct {
	// owner is the nonce of the engine whose the file is; empty if there is none.
	owner string
	// edition and generation of the owner.
	edition, generation uint64
	entry               handoff.Entry
}

func offeredBy(record state.Record, entry handoff.Entry) offered {
	return offered{owner: record.Identity.Nonce, edition: record.Edition, generation: record.Generation, entry: entry}
}

// isLater is whether an engine has taken the place of the other. One that is started anew while it is being replaced has the higher
// generation, and an edition that is over.
func (o offered) isLater(other offered) bool {
	return cmp.Or(cmp.Compare(o.edition, other.edition), cmp.Compare(o.generation, other.generation)) > 0
}

// change calls act alone for the replica. It is given what the file holds, and returns what it holds then.
func (o *offers) change(replica registry.ReplicaID, act func(offered) (offered, error)) error {
	o.mu.Lock()
	file := o.of[replica]
	if file == nil {
		file = &offer{turn: make(chan struct{}, 1)}
		file.turn <- struct{}{}
		o.of[replica] = file
	}
	file.users++
	o.mu.Unlock()

	<-file.turn
	now, err := act(o.look(file))

	o.mu.Lock()
	file.offered = now
	if file.users--; file.users == 0 && now.owner == "" {
		delete(o.of, replica)
	}
	o.mu.Unlock()
	file.turn <- struct{}{}
	return err
}

func (o *offers) look(file *offer) offered {
	o.mu.Lock()
	defer o.mu.Unlock()
	return file.offered
}

// Offer writes the handoff file, in place of that of an earlier engine of the replica; that of a later one stays, for an engine that
// gets ready after it was replaced has nothing to offer. Repeating it does nothing.
func (e *Engine) Offer() error {
	prepared := e.request.Prepared
	entry := handoff.Entry{
		Engine:           prepared.GetEngine().GetKind(),
		EngineVersion:    prepared.GetEngine().GetVersion(),
		ProvisioningMode: modeName(prepared.GetEngine().GetMode()),
		URL:              e.info.Endpoint,
		PoolID:           string(e.request.Pool),
		ReplicaID:        string(e.request.Replica),
		Model:            handoff.Model{ID: prepared.GetModel().GetId(), Path: modelPath(prepared.GetModel())},
		Flags:            e.how.args,
		SlotsTotal:       e.info.Slots,
		SlotsFree:        e.info.Slots,
		PID:              e.info.PID,
	}
	own := offeredBy(e.record, entry)
	return e.launcher.offers.change(e.request.Replica, func(now offered) (offered, error) {
		if reflect.DeepEqual(now, own) || now.owner != "" && now.isLater(own) {
			return now, nil
		}
		if _, err := e.launcher.config.Handoff.Publish(entry); err != nil {
			return now, err
		}
		return own, nil
	})
}

func modeName(mode enginev1.ProvisioningMode) string {
	return strings.ToLower(strings.TrimPrefix(mode.String(), "PROVISIONING_MODE_"))
}

func modelPath(model *enginev1.PreparedModel) string {
	if files := model.GetFiles(); len(files) > 0 {
		return files[0].GetPath()
	}
	return ""
}

// Withdraw removes the handoff file, unless another engine of the replica was offered since.
func (e *Engine) Withdraw() error {
	return e.launcher.offers.change(e.request.Replica, func(now offered) (offered, error) {
		if now.owner != e.record.Identity.Nonce {
			return now, nil
		}
		if err := e.launcher.config.Handoff.Withdraw(string(e.request.Replica)); err != nil {
			return now, err
		}
		return offered{}, nil
	})
}
