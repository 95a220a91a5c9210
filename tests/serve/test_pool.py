"""What waits for a worker is asked together, as far as others do not wait too long for it."""

import asyncio

from headstart.serve.pool import Job, together
from headstart.serve.work import Lesson, Question


def question(task, values=1):
    return Question(task, 1, "run", ("a", "b"), (1, 1), (b"",) * values)


def lesson(task):
    return Lesson(task, 1, "run", (b"",) * 20, ("a", "b") * 10)


def taken(requests, seconds, attempts=(), gone=()):
    loop = asyncio.new_event_loop()
    jobs = [Job(request, loop.create_future(), 0.0) for request in requests]
    jobs = [job._replace(attempts=1) if place in attempts else job for place, job in enumerate(jobs)]
    for place in gone:
        jobs[place].future.cancel()
    found, left = together(jobs, seconds)
    loop.close()
    return [jobs.index(job) for job in found], [jobs.index(job) for job in left]


def test_requests_of_the_sort_that_waits_longest_go_together():
    waiting = [question("x"), lesson("y"), question("x"), lesson("z")]
    assert taken(waiting, lambda job: 0.0) == ([0, 2], [1, 3])
    assert taken(waiting, lambda job: 0.0, gone=[0]) == ([1, 3], [2]), "nobody waits for the first any more"
    assert taken([lesson("x"), lesson("x"), lesson("y")], lambda job: 0.0) == ([0, 2], [1]), "of one task in turn"
    assert taken([question("x")] * 3, lambda job: 0.0, attempts=[0])[0] == [0], "what was asked before goes alone"


def test_others_do_not_wait_for_more_than_a_moment():
    waiting = [lesson(str(number)) for number in range(9)] + [question("x")]
    assert taken(waiting, lambda job: 0.02) == ([0, 1], [2, 3, 4, 5, 6, 7, 8, 9])
    assert taken(waiting, lambda job: 3.0)[0] == [0], "one has to take as long as it takes"
    assert len(taken([question("x")] * 100, lambda job: 1e-4)[0]) == 64
    assert len(taken([question("x")] * 100, lambda job: 3.0)[0]) == 16, "a slow moment does not part them for good"
    assert len(taken([question("x", 600)] * 3, lambda job: 1e-4)[0]) == 1, "values are counted, too"
