"""Training and evaluation order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from densenet_backbones.data.loaders.samplers import EpochSampler, GroupedSampler, ShardSampler

sizes = st.integers(0, 60)
worlds = st.integers(1, 9)


@given(sizes, worlds)
def test_shards_are_disjoint_and_complete(size, world):
    shards = [ShardSampler(range(size), world, rank) for rank in range(world)]
    shares = [list(shard) for shard in shards]
    assert [len(s) for s in shards] == [len(s) for s in shares]
    assert sorted(i for share in shares for i in share) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(sizes, worlds, st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_training_shares_are_equal_and_cover_the_set(size, world, seed, epoch, drop_last):
    shares = []
    for rank in range(world):
        sampler = EpochSampler(range(size), world, rank, seed=seed, drop_last=drop_last)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert len({len(share) for share in shares}) == 1
    assert {e for share in shares for e, _ in share} <= {epoch}
    seen = [i for share in shares for _, i in share]
    if drop_last:
        assert len(set(seen)) == len(seen) == size - size % world
    else:
        assert set(seen) == set(range(size))
        assert len(seen) - size < world


@given(sizes, worlds, st.integers(0, 3), st.integers(0, 5))
def test_the_order_does_not_depend_on_the_number_of_processes(size, world, seed, epoch):
    alone = EpochSampler(range(size), seed=seed)
    alone.set_epoch(epoch)
    shares = []
    for rank in range(world):
        sampler = EpochSampler(range(size), world, rank, seed=seed)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
    dealt = [share[turn] for turn in range(len(shares[0])) for share in shares]
    assert dealt[:size] == list(alone)


@given(st.integers(1, 60), worlds, st.data())
def test_an_epoch_can_be_entered_in_its_middle(size, world, data):
    rank = data.draw(st.integers(0, world - 1))
    sampler = EpochSampler(range(size), world, rank)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start = data.draw(st.integers(0, len(sampler)))
    assert list(sampler) == whole[sampler.start :]
    assert len(sampler) == len(whole)
    sampler.start = len(sampler) + 1
    with pytest.raises(ValueError, match=r"start must lie in \[0, "):
        iter(sampler)


def test_seeds_and_epochs_each_have_their_own_order():
    orders = set()
    for seed in range(4):
        for epoch in range(4):
            sampler = EpochSampler(range(30), seed=seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(index for _, index in sampler))
    assert len(orders) == 16
    assert list(EpochSampler(range(4), shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_lightning_will_leave_them_alone_and_a_loader_takes_them():
    for sampler in (EpochSampler(range(5)), ShardSampler(range(5))):
        assert isinstance(sampler, DistributedSampler)
        assert (sampler.num_replicas, sampler.rank) == (1, 0)
    pairs = _Echo(5)
    loader = DataLoader(pairs, batch_size=2, sampler=EpochSampler(pairs), collate_fn=list)
    batches = list(loader)
    assert [len(b) for b in batches] == [2, 2, 1]
    assert sorted(index for batch in batches for _, index in batch) == [0, 1, 2, 3, 4]


class _Echo:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize(("replicas", "rank"), [(0, 0), (2, 2), (2, -1)])
def test_a_place_outside_the_world_is_refused(replicas, rank):
    for sampler in (EpochSampler, ShardSampler):
        with pytest.raises(ValueError, match="rank must lie in"):
            sampler(range(4), replicas, rank)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        EpochSampler(range(4), seed=-1)


# Batches of one group.


@st.composite
def grouped_sets(draw):
    """Groups of the images, a batch size and a number of processes."""
    groups = draw(st.lists(st.integers(0, draw(st.integers(0, 2))), max_size=70))
    return groups, draw(st.integers(1, 6)), draw(st.integers(1, 4))


def grouped_batches(groups, size, world, seed, epoch):
    """The batches of every process; a loader leaves out the last where it is not full."""
    shares = []
    for rank in range(world):
        sampler = GroupedSampler(groups, size, world, rank, seed)
        sampler.set_epoch(epoch)
        share = list(sampler)
        assert {e for e, _ in share} <= {epoch}
        shares.append([[i for _, i in share[n : n + size]] for n in range(0, len(share), size)])
    return shares


@given(grouped_sets(), st.integers(0, 3), st.integers(0, 3))
def test_full_batches_are_of_one_group_but_for_a_few(case, seed, epoch):
    groups, size, world = case
    shares = grouped_batches(groups, size, world, seed, epoch)
    full = [batch for share in shares for batch in share if len(batch) == size]
    mixed = [batch for batch in full if len({groups[i] for i in batch}) > 1]
    assert len(mixed) <= max(len(set(groups)) - 1, 0)


@given(grouped_sets(), st.integers(0, 3), st.integers(0, 3))
def test_grouping_shows_the_images_that_an_epoch_shows_without(case, seed, epoch):
    groups, size, world = case
    shares = grouped_batches(groups, size, world, seed, epoch)
    assert len({tuple(map(len, share)) for share in shares}) == 1  # no process waits for another
    plain = []
    for rank in range(world):
        sampler = EpochSampler(groups, world, rank, seed=seed)
        sampler.set_epoch(epoch)
        plain.append([i for _, i in sampler])
        assert len(GroupedSampler(groups, size, world, rank)) == len(sampler)
    kept = len(plain[0]) // size * size  # where the loader drops the rest
    assert Counter(i for s in shares for b in s for i in b if len(b) == size) == Counter(
        i for share in plain for i in share[:kept]
    )
    assert Counter(i for s in shares for b in s for i in b) == Counter(
        i for share in plain for i in share
    )


@given(grouped_sets(), st.integers(0, 3), st.data())
def test_a_grouped_epoch_can_be_entered_in_its_middle(case, epoch, data):
    groups, size, world = case
    sampler = GroupedSampler(groups, size, world, data.draw(st.integers(0, world - 1)), seed=1)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    assert list(sampler) == whole
    sampler.start = data.draw(st.integers(0, len(sampler)))
    assert list(sampler) == whole[sampler.start :]
    sampler.start = len(sampler) + 1
    with pytest.raises(ValueError, match=r"start must lie in \[0, "):
        iter(sampler)


def test_no_image_of_a_small_group_is_always_left_out():
    """3 portraits among 100: in batches of 8 on 4 processes, 4 images are left out an epoch."""
    groups = [0] * 97 + [1] * 3
    seen = Counter()
    for epoch in range(60):
        for share in grouped_batches(groups, 8, 4, 0, epoch):
            seen.update(i for batch in share for i in batch if len(batch) == 8)
    assert min(seen[i] for i in (97, 98, 99)) > 45


def test_grouped_orders_differ_between_epochs_and_seeds():
    groups = [n % 2 for n in range(40)]
    orders = {
        tuple(map(tuple, grouped_batches(groups, 4, 1, seed, epoch)[0]))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        GroupedSampler([0, 1], 0)
