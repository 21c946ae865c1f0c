"""Which sequences run, which wait, and whose cells give way.

Every step takes all decoding sequences, then prefill rows, oldest prompt first, as many as `pace.py` allows. A decoding sequence
has a row, or shares one (`rows.py`). Of a race, those run that win it soonest (`race.py`).

When cells run out, finished prefixes give way first (least recently used), then the youngest running sequence is preempted: it
keeps its tokens, loses its cells, and goes on later. So no sequence ever fails because of another. What loses its cells is copied
to the host's memory if there is room (`host_cache.py`), and copied back for the next prompt that begins alike.

A parked sequence (its job allows it no more tokens for now, or others of its race go first) gets no rows. It keeps its place and
cells until somebody waits for them: then it is set aside, its cells become a prefix like a finished one's, and it queues again,
in its old turn, when it may go on.

All rows of a step use one adapter, or none (`turns.py` says whose turn it is); ids, cells and preemption are common to all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from atlas.engine.finished import Finished
from atlas.engine.host_cache import HostCache
from atlas.engine.pace import Pace
from atlas.engine.plan import Draft, Part, Plan
from atlas.engine.race import Race, Row
from atlas.engine.radix import Match, PrefixTree
from atlas.engine.reuse import AnyPrefix, Position, Reuse, Tile, WholeState, cpu_tile
from atlas.engine.rows import SharedRows
from atlas.engine.runner import Runner
from atlas.engine.sequence import Job, Sequence
from atlas.engine.turns import Turns

GROWTH_TOKENS = 64  # cells kept ready for each running sequence at admission; chosen, unmeasured
WORTH_LOADING_TOKENS = 32  # more than what is in the context anyway; chosen, unmeasured


class Scheduler:
    """Owned by the engine thread; the only one that gives out sequence ids and cells.

    Args:
        pace: how much of prompts a step may have beside running answers.
        race: which candidates of a race run.
        splits_steps: a step takes as long as all its rows (a CPU), so that a prompt's last rows are better off alone; where it
            takes as long as reading the weights (a GPU), they go with the others.
    """

    def __init__(
        self, runner: Runner, *, max_running: int, max_cached: int, pace: Pace, race: Race, host_tokens: int, splits_steps: bool
    ) -> None:
        self._runner = runner
        self._host = HostCache(host_tokens)
        self._max_running = max_running
        self._pace, self._race = pace, race
        self._tree = PrefixTree()
        self._reuse = self._policy(cpu_tile(runner) if splits_steps else None)
        self._rows = SharedRows(self._tree, runner)
        self._free_ids = list(range(runner.num_sequences))
        self.finished = Finished(
            self._tree,
            runner,
            self._host,
            self._release,
            most=max_cached,
            is_copied=host_tokens > 0,
            counts_prompts=splits_steps,
        )
        self._splits_steps = splits_steps
        self._were_apart: set[int] = set()  # adapters whose decode rows have waited
        self._turns = Turns()
        self._cells_idle: int | None = None  # None: to be counted
        self._waiting: list[tuple[tuple[int, int], int, Sequence]] = []
        self._tie = count()
        self._aside: list[Sequence] = []  # parked and without a sequence id
        self.running: list[Sequence] = []  # in the order they were admitted
        self.num_preempted = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._aside)

    @property
    def cells_used(self) -> int:
        return self._tree.cells

    @property
    def cells_live(self) -> int:
        """Cells that running sequences hold; what only finished prefixes hold changes with the sequences, not with their rows."""
        if self._cells_idle is None:
            live = self._tree.held_by({sequence.seq_id for sequence in self.running if sequence.seq_id is not None})
            self._cells_idle = self._tree.cells - live
        return self._tree.cells - self._cells_idle

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or any(not sequence.is_spent for sequence in self.running)

    def _policy(self, tile: Tile | None) -> Reuse:
        if self._runner.model.can_drop_tails:
            return AnyPrefix(self._tree, self._host, tile)
        return WholeState(self._tree, self._host)

    def add(self, sequence: Sequence) -> None:
        if sequence.is_parked:
            self._aside.append(sequence)
        else:
            heapq.heappush(self._waiting, (sequence.job.order, next(self._tie), sequence))

    def resume(self) -> None:
        """Some allowance has been raised: whoever was set aside and may go on queues again."""
        aside, self._aside = self._aside, []
        for sequence in aside:
            self.add(sequence)

    def resume_race(self, job: Job) -> None:
        """A candidate has ended: paused ones that were set aside may have their turn."""
        for sequence in self._aside:
            if sequence.job is job:
                sequence.is_paused = False
        self.resume()

    def waiting(self) -> list[Sequence]:
        return [entry[2] for entry in self._waiting] + self._aside

    def forget(self, sequence: Sequence) -> None:
        """Take a waiting sequence off the queue."""
        self._aside = [other for other in self._aside if other is not sequence]
        self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
        heapq.heapify(self._waiting)

    def admit(self) -> None:
        """Move waiting sequences to running while there are ids and cells; in order, so that none starves."""
        while self._waiting:
            sequence = self._waiting[0][2]
            if not self._fits(sequence):
                if not self._set_one_aside():
                    break
                continue
            heapq.heappop(self._waiting)
            sequence.seq_id = self._take_id()
            sequence.is_placed = False
            self.running.append(sequence)

    def plan(self) -> Plan:
        """The next step's rows, all of one adapter; makes room for them."""
        keys = self._turns.order(self.running)
        for key in keys:
            plan = self._plan_of(key, is_alone=len(keys) == 1)
            if plan.decode or plan.prefill:
                break
        self._turns.took(key)
        self.finished.looked_over(plan)
        return plan

    def _plan_of(self, key: int, *, is_alone: bool) -> Plan:
        decode = [Part(row, row[0].num_held, row[0].to_feed, True) for row in self._decoding(key)]
        self.finished.drop_stale()
        if all(sequence.is_decoding for sequence in self.running):
            self._were_apart.discard(key)
            return Plan(decode, [])
        limit = self._runner.batch.capacity - len(decode)
        budget = limit if is_alone and not decode else min(limit, self._pace.tokens(len(decode)))
        plan = Plan(decode, self._prefill_parts(key, budget, reserved=len(decode)))
        self.finished.drop_stale(plan)
        if not self._is_better_apart(key, decode, plan.prefill):
            self._were_apart.discard(key)
            return plan
        self._were_apart.add(key)
        return Plan([], plan.prefill)

    def _is_better_apart(self, key: int, decode: list[Part], prefill: list[Part]) -> bool:
        """Whether prompts are done sooner if the decode rows wait a step; they are never left out twice in a row."""
        is_done = bool(prefill) and all(part.is_last for part in prefill)
        return self._splits_steps and bool(decode) and is_done and key not in self._were_apart

    def computed(self, part: Part) -> None:
        """The rows of this part have cells now."""
        self._tree.extend(part.seq_ids, part.tokens)
        for sequence in part.sequences:
            sequence.num_held += len(part.tokens)

    def room_for_drafts(self, plan: Plan) -> int:
        """Rows that may be added in cells that are free: nobody gives way to them, and no prompt is beside them."""
        free = min(self._runner.batch.capacity, self._runner.context_tokens - self._tree.cells)
        return 0 if plan.prefill else free - len(plan.decode)

    def with_drafts(self, plan: Plan, drafts: list[Draft]) -> Plan:
        if not any(drafts):
            return plan
        return Plan([part._replace(draft=draft) for part, draft in zip(plan.decode, drafts, strict=True)], [])

    def accepted(self, sequences: Row) -> None:
        """The token they have drawn is the one their draft had computed: it has a cell."""
        self._tree.extend(tuple(sequence.placed_at for sequence in sequences), sequences[0].to_feed)
        for sequence in sequences:
            sequence.num_held += 1

    def retire(self, sequence: Sequence, *, keep: bool) -> None:
        """A running sequence has ended; with `keep` its cells stay as a prefix for others."""
        self.running.remove(sequence)
        self._cells_idle = None
        seq_id, sequence.seq_id = sequence.seq_id, None
        assert seq_id is not None
        if keep and sequence.num_held:
            self.finished.keep(seq_id, sequence.ids[: sequence.num_held].copy(), key=sequence.key)
        else:
            self._release(seq_id)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's cells; it goes back to the head of the queue with its tokens."""
        assert sequence.seq_id is not None
        self.finished.save(sequence.seq_id, sequence.ids[: sequence.num_held].copy(), key=sequence.key)
        self._put_back(sequence, keep=False)
        self.num_preempted += 1

    def expect(self, key: int) -> None:
        """Prompts of this adapter will come, until it is forgotten."""
        self._turns.expect(key)

    def forget_adapter(self, key: int) -> None:
        """Nothing runs or waits with this adapter any more, nothing will: let go of what was computed with it."""
        self.finished.forget_adapter(key)
        self._tree.forget(key)
        self._turns.forget(key)
        self._were_apart.discard(key)

    def _put_back(self, sequence: Sequence, *, keep: bool) -> None:
        self.retire(sequence, keep=keep)
        sequence.num_held = 0
        self.add(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        if len(self.running) >= self._max_running:
            return False
        return not self.running or self._cells_needed(sequence) <= self._cells_spare()

    def _set_one_aside(self) -> bool:
        """Take the place of the youngest parked sequence; False if none is parked."""
        parked = [sequence for sequence in self.running if sequence.is_parked]
        if parked:
            self._put_back(max(parked, key=_turn), keep=True)
        return bool(parked)

    def _prefill_parts(self, key: int, budget: int, *, reserved: int) -> list[Part]:
        parts: list[Part] = []
        for sequence in list(self.running):
            if sequence.key != key or sequence.seq_id is None or sequence.is_decoding:
                continue
            if self._rows.join(sequence, parts) or budget <= 0:
                continue
            if not sequence.is_placed and not self._place(sequence, parts, reserved=reserved):
                continue
            wanted = self._reuse.part_length(sequence, min(budget, len(sequence.to_feed)))
            room = self._room(wanted + reserved, but=None if reserved else sequence) - reserved
            tokens = sequence.to_feed[: max(0, min(wanted, room))]
            if len(tokens):
                is_last = sequence.num_held + len(tokens) == sequence.length
                parts.append(Part((sequence,), sequence.num_held, tokens, is_last))
                budget -= len(tokens)
                reserved += len(tokens)
        return parts

    def _place(self, sequence: Sequence, parts: list[Part], *, reserved: int) -> bool:
        """Take the longest prefix that is held; False to wait for a prompt of this step that will hold a longer one."""
        match = self._match(sequence)
        saved = self._reuse.saved(sequence)
        longest = max(match.length, saved.length)
        if any(self._reuse.is_worth_waiting(sequence, part.sequence, longest) for part in parts):
            return False
        is_worth_it = saved.holder is not None and saved.length > match.length + WORTH_LOADING_TOKENS
        if not (is_worth_it and self._load(sequence, saved, reserved=reserved)):
            self._share(sequence, self._match(sequence))  # looked for again: making room may have cost its holder
        sequence.is_placed = True
        return True

    def _share(self, sequence: Sequence, match: Match) -> None:
        assert sequence.seq_id is not None
        if match.holder is not None:
            self._runner.share(match.holder, sequence.seq_id, match.length)
            self.finished.touch(match.holder)
        self._reuse.begin(sequence.seq_id, sequence, match)
        self._cells_idle = None
        sequence.num_held = match.length

    def _load(self, sequence: Sequence, saved: Match, *, reserved: int) -> bool:
        """Copy a saved prefix into the context; False if it does not fit beside the rows that are planned."""
        assert sequence.seq_id is not None
        assert saved.holder is not None
        entry, length = self._host.take(saved.holder), saved.length
        wanted = len(entry.ids) + reserved
        if wanted > self._runner.context_tokens - self.cells_live:  # whatever gave way
            return False
        if self._room(wanted) < wanted or not self._runner.load(sequence.seq_id, entry.state):
            return False
        if length < len(entry.ids):
            self._runner.drop(sequence.seq_id, length)
        self._tree.begin(sequence.seq_id, sequence.ids, 0, key=sequence.key)
        self._cells_idle = None
        self._tree.extend((sequence.seq_id,), sequence.ids[:length])
        sequence.num_held = length
        return True

    def _match(self, sequence: Sequence) -> Match:
        return self._reuse.held(sequence, self._positions())

    def _positions(self) -> Iterator[Position]:
        for other in self.running:
            if other.is_placed and other.seq_id is not None:
                yield Position(other.seq_id, other.ids[: other.num_held], other.key)
        yield from self.finished.positions()

    def _cells_needed(self, sequence: Sequence) -> int:
        is_sibling = any(other.job is sequence.job for other in self.running)
        held = sequence.prompt_length - 1 if is_sibling else self._match(sequence).length
        return sequence.length - held + GROWTH_TOKENS

    def _cells_spare(self) -> int:
        """Cells not held by a running sequence, less what running ones still have to feed and grow."""
        growth = GROWTH_TOKENS * len(self.running)
        return self._runner.context_tokens - self.cells_live - self._rows.num_unread(self.running) - growth

    def _decoding(self, key: int) -> list[Row]:
        """Those of this adapter that get a row of this step, alone or together; there is room for the rows."""
        while True:
            decoding = [s for s in self.running if s.key == key and s.is_decoding and not s.is_spent]
            rows = self._race.chosen(self._rows.of(decoding))
            if self._room(len(rows)) >= len(rows):
                return rows
            self.preempt(self._youngest())

    def _room(self, wanted: int, *, but: Sequence | None = None) -> int:
        """Free cells, after evicting finished prefixes while fewer than `wanted`; for `but`, also after preempting others."""
        while (free := self._runner.context_tokens - self._tree.cells) < wanted and self.finished:
            self.finished.evict()
        if free <= 0 and but is not None and len(self.running) > 1:
            youngest = self._youngest()
            if youngest is not but:
                self.preempt(youngest)
                return self._room(wanted, but=but)
        return free

    def _youngest(self) -> Sequence:
        """Who gives way first: parked ones, then those that came last."""
        return max((s for s in self.running if s.is_placed), key=lambda s: (s.is_parked, _turn(s)))

    def _take_id(self) -> int:
        if not self._free_ids:
            self.finished.evict()
        return self._free_ids.pop()

    def _release(self, seq_id: int) -> None:
        self._tree.release(seq_id)
        self._cells_idle = None
        self._runner.drop(seq_id)
        self._free_ids.append(seq_id)


def _turn(sequence: Sequence) -> tuple[tuple[int, int], int]:
    return sequence.job.order, sequence.index
