"""Group commit: in order, in batches, whoever leads; nobody is left waiting."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.committer import BATCH_BYTES, BATCH_COUNT, Budget, Committer, Operation


@pytest.fixture
def pool():
    made = ThreadPoolExecutor(2)
    yield made
    made.shutdown()


class Disk:
    """Remembers what was committed; each commit may be held or fail."""

    def __init__(self, pool):
        self.batches: list[list[object]] = []
        self.threads: list[int] = []
        self.after: list[list[Operation]] = []
        self.errors: list[BaseException] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.committer = Committer(self.commit, self.after.append, pool)

    def commit(self, batch):
        self.entered.set()
        assert self.go.wait(60)
        if self.errors:
            raise self.errors.pop(0)
        for operation in batch:
            try:
                operation.result = operation.apply(None)
            except RadmeshError as error:
                operation.error = error
        self.batches.append([operation.result for operation in batch])
        self.threads.append(threading.get_ident())


@pytest.fixture
def disk(pool):
    return Disk(pool)


def operation(value, size=0):
    return Operation(lambda _transaction: value, size)


def test_a_lone_caller_commits_by_itself(disk):
    assert [disk.committer.run(operation(n), 5) for n in range(3)] == [0, 1, 2]
    assert disk.batches == [[0], [1], [2]]
    assert set(disk.threads) == {threading.get_ident()}
    assert disk.committer.idle


def test_what_comes_meanwhile_is_one_batch_in_order(disk):
    disk.go.clear()
    results = []
    first = threading.Thread(target=lambda: results.append(disk.committer.run(operation("first"), 10)))
    first.start()
    assert disk.entered.wait(60)
    others = [operation(n) for n in range(10)]
    for one in others:
        disk.committer.submit(one)
    disk.go.set()
    assert [one.wait(60) for one in others] == list(range(10))
    first.join(60)
    assert results == ["first"]
    assert disk.batches == [["first"], list(range(10))]
    wait_for(lambda: disk.committer.idle)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([0] * (BATCH_COUNT + 1), [BATCH_COUNT, 1]),
        ([BATCH_BYTES // 2] * 5, [2, 2, 1]),
        ([BATCH_BYTES + 1, 1], [1, 1]),
        ([1, BATCH_BYTES, 1], [1, 1, 1]),
    ],
)
def test_batches_are_bounded(disk, sizes, batches):
    disk.go.clear()
    threading.Thread(target=disk.committer.run, args=(operation("first"), 10)).start()
    assert disk.entered.wait(60)
    made = [operation(n, size) for n, size in enumerate(sizes)]
    for one in made:
        disk.committer.submit(one)
    disk.go.set()
    made[-1].wait(60)
    assert [len(batch) for batch in disk.batches[1:]] == batches


def test_a_failed_batch_fails_all_in_it_and_none_behind(disk):
    disk.errors += [RadmeshError("STORAGE_FULL", "of the test"), OSError("of the test")]
    for reason in ("STORAGE_FULL", "COMMIT_FAILED"):
        with pytest.raises(RadmeshError) as caught:
            disk.committer.run(operation(1), 5)
        assert caught.value.reason == reason
    assert disk.committer.run(operation(2), 5) == 2
    assert [len(batch) for batch in disk.after] == [1, 1, 1]


def test_an_operation_that_is_refused_fails_alone(disk):
    def refuse(_transaction):
        raise RadmeshError("TRANSFER_INVALID", "of the test")

    disk.go.clear()
    threading.Thread(target=disk.committer.run, args=(operation("first"), 10)).start()
    assert disk.entered.wait(60)
    bad, good = Operation(refuse, 0), operation("good")
    disk.committer.submit(bad)
    disk.committer.submit(good)
    disk.go.set()
    assert good.wait(60) == "good"
    with pytest.raises(RadmeshError):
        bad.wait(60)


def test_an_interrupt_of_the_leader_leaves_nobody_waiting(disk):
    """Control-C in the thread that commits: what it was committing fails, the next goes on."""
    disk.errors.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        disk.committer.run(operation(1), 5)
    assert disk.committer.idle
    assert disk.committer.run(operation(2), 5) == 2


def test_any_number_of_threads_wait_for_one_operation(disk):
    disk.go.clear()
    one = operation("x")
    disk.committer.submit(one)
    results = []
    threads = [threading.Thread(target=lambda: results.append(one.wait(60))) for _ in range(5)]
    for thread in threads:
        thread.start()
    disk.go.set()
    for thread in threads:
        thread.join(60)
    assert results == ["x"] * 5


def test_waiting_ends_with_a_reason(disk):
    disk.go.clear()
    one = operation("x")
    disk.committer.submit(one)
    with pytest.raises(RadmeshError) as caught:
        one.wait(0.01)
    assert caught.value.reason == "STORE_BUSY"
    disk.go.set()
    assert one.wait(60) == "x"


def test_many_threads_lose_nothing(disk):
    done = []

    def work(lane):
        done.extend(disk.committer.run(operation((lane, number)), 10) for number in range(200))

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    committed = [result for batch in disk.batches for result in batch]
    assert sorted(done) == sorted(committed) == [(lane, number) for lane in range(6) for number in range(200)]
    for lane in range(6):
        assert [number for mine, number in committed if mine == lane] == list(range(200))
    wait_for(lambda: disk.committer.idle)


def test_a_fast_sender_does_not_starve_the_others(pool):
    """One environment that always has more to commit, and one thread for all."""
    one_thread = ThreadPoolExecutor(1)
    busy, other = Disk(one_thread), Disk(one_thread)
    stop = threading.Event()

    def more(_transaction):
        if not stop.is_set():
            busy.committer.submit(Operation(more, BATCH_BYTES))

    busy.committer.submit(Operation(more, BATCH_BYTES))
    busy.committer.submit(Operation(more, BATCH_BYTES))
    late = operation("other")
    other.committer.submit(late)
    assert late.wait(60) == "other"
    stop.set()
    wait_for(lambda: busy.committer.idle)
    one_thread.shutdown()


def test_a_budget_bounds_and_lets_one_that_is_too_large_through():
    budget = Budget(10)
    budget.take(8, 0)
    with pytest.raises(RadmeshError) as caught:
        budget.take(3, 0.01)
    assert caught.value.reason == "STORE_BUSY"
    budget.take(2, 0)
    assert budget.used == 10
    budget.give(10)
    budget.take(50, 0)
    budget.give(50)
    assert budget.used == 0
