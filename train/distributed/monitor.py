"""Finds the process that is dead or late, says so in one sentence, and ends this process.

Each process sends heartbeats through the coordination service. The first one watches for silence
and tells the others; each of the others watches the first one, and the time of its own step.
"""

import contextlib
import threading
import time

import jax

from train.distributed import team
from train.distributed.abort import say, say_and_exit, speak_on_abort
from train.distributed.stopping import Gate
from train.distributed.team import Beat

BEAT_SECONDS = 1.0
_FAREWELL_BEATS = 4
FINISHED = "finished"
_NEWS = "hydrahead/news/"
_AGAIN = "start all processes again, and they continue from the last checkpoint"


class Monitor:
    """Runs two threads: one exchanges heartbeats, the other decides from what was received.

    Attributes:
      peer_timeout: seconds of silence after which a process counts as dead.
      step_timeout: seconds that a step may take, None while a step compiles.
      gate: lets steps begin; None where no steps run.
      heard: the last new heartbeat of each process, and when it came.
    """

    def __init__(self, peer_timeout: float):
        self.peer_timeout = peer_timeout
        self.step_timeout: float | None = None
        self.gate: Gate | None = None
        self.heard: dict[int, tuple[Beat, float]] = {}
        self._step, self._doing, self._since = 0, "starting", time.monotonic()
        self._last_talk = time.monotonic()
        self._count, self._left = 0, None
        self._over = threading.Event()
        self._speaking = threading.Lock()

    def start(self) -> None:
        speak_on_abort(self._sentence_at_abort)
        for target in (self._talk, self._decide):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def progress(self, step: int | None, doing: str, timeout: float | None) -> None:
        """Notes that something begins, which may take `timeout` seconds.

        It belongs to `step`, or to the last step if that is None.
        """
        self._step, self._doing = self._step if step is None else step, doing
        self.step_timeout, self._since = timeout, time.monotonic()

    def finish(self) -> None:
        """Returns when all processes have called it; this one stops watching the others then."""
        self.progress(None, FINISHED, None)
        self._wait_until_all(FINISHED)
        self._over.set()

    def _wait_until_all(self, doing: str) -> None:
        while True:
            self._beat()
            known = team.beats()
            if len(known) == team.count() and all(b.doing == doing for b in known.values()):
                return
            time.sleep(BEAT_SECONDS / 4)

    def leave(self, why: str) -> bool:
        """Tells the others that this process ends early.

        Returns:
          Whether the first process has given the same reason already.
        """
        self._left = why
        try:
            self._beat()
            if team.is_first():
                team.put(f"{_NEWS}verdict", self._sentence_left(0, self._own()))
            time.sleep(self._farewell())
            verdict = team.folder(_NEWS).get("verdict", "")
        except jax.errors.JaxRuntimeError:
            return False  # the coordination service is gone
        return not team.is_first() and verdict.endswith(why)

    def wait_for_verdict(self) -> None:
        """Waits long enough for the monitor thread to find a dead peer and exit this process."""
        time.sleep(self.peer_timeout + 3 * _FAREWELL_BEATS * BEAT_SECONDS)

    def _farewell(self) -> float:
        """Seconds to wait before exit, so that peers can read our message.

        Process 0 waits longer, because it hosts the coordination service.
        """
        return (_FAREWELL_BEATS + 2 * team.is_first()) * BEAT_SECONDS

    def _own(self) -> Beat:
        return Beat(self._count, self._step, self._doing, team.host_name(), self._left)

    def _beat(self) -> None:
        self._count += 1
        team.publish(self._own())
        if team.is_first():
            team.put(f"{_NEWS}first", list(self._own()))

    def _talk(self) -> None:
        while not self._over.is_set():
            try:
                self._beat()
                news = team.folder(_NEWS)
                known = team.beats() if team.is_first() else {}
            except jax.errors.JaxRuntimeError:
                time.sleep(BEAT_SECONDS)
                continue
            now = self._last_talk = time.monotonic()
            if "first" in news:
                known[0] = Beat(*news["first"])
            for process, beat in known.items():
                if process not in self.heard or self.heard[process][0].count != beat.count:
                    self.heard[process] = (beat, now)
            if "verdict" in news and self._left is None:
                self._end(news["verdict"])
            if self.gate is not None:
                self._mind_the_gate(self.gate, "stop" in news)
            self._over.wait(BEAT_SECONDS)

    def _mind_the_gate(self, gate: Gate, is_asked: bool) -> None:
        """Makes all processes agree on a stop that one of them wants."""
        try:
            if gate.is_wanted and not is_asked:
                team.put(f"{_NEWS}stop", True)
            if gate.is_wanted or is_asked:
                gate.close()
        except jax.errors.JaxRuntimeError:
            return  # tried again at the next heartbeat, if a peer is left

    def _decide(self) -> None:
        while not self._over.wait(BEAT_SECONDS / 2):
            sentence = self.judge(time.monotonic())
            if sentence is not None:
                self._end(sentence)

    def judge(self, now: float) -> str | None:
        """Returns the sentence with which the process must end, None while all is well."""
        if self._left is not None:
            return None
        if not team.is_first() and now - self._last_talk > self.peer_timeout:
            return self.sentence_dead(0, now)
        for process, (beat, when) in list(self.heard.items()):
            if beat.left is not None and process != team.index():
                return self._sentence_left(process, beat)
            if now - when > self.peer_timeout and process != team.index():
                return self.sentence_dead(process, now)
        if self.step_timeout is not None and now - self._since > self.step_timeout:
            return self._sentence_late(self.step_timeout)
        return None

    def _sentence_left(self, process: int, beat: Beat) -> str:
        return f"{team.describe(process, beat)} ended: {beat.left}"

    def sentence_dead(self, process: int, now: float) -> str:
        beat, when = self.heard.get(process, (None, self._last_talk))
        return (
            f"{team.describe(process, beat)} is dead: nothing heard of it for {now - when:.0f} s; "
            f"{_AGAIN}"
        )

    def _sentence_late(self, timeout: float) -> str:
        """Reads the heartbeats twice, to distinguish dead processes from late ones."""
        try:
            before = team.beats()
            time.sleep(3 * BEAT_SECONDS)
            after = team.beats()
        except jax.errors.JaxRuntimeError:
            return self.sentence_dead(0, time.monotonic())
        silent = [i for i, beat in after.items() if beat == before.get(i) and i != team.index()]
        took = f"{self._doing} {self._step} took longer than {timeout:.0f} s"
        if silent:
            names = ", ".join(team.describe(i, after[i]) for i in silent)
            return f"{took}: {names} has stopped sending heartbeats; {_AGAIN}"
        least = min(beat.step for beat in after.values())
        late = [i for i, beat in after.items() if beat.step == least]
        if len(late) == len(after):
            return f"{took} on all processes, none is behind; {_AGAIN}"
        names = ", ".join(team.describe(i, after[i]) for i in late)
        return f"{took}: {names} is late; {_AGAIN}"

    def _end(self, sentence: str) -> None:
        """Ends the process with one sentence, however many threads call it."""
        if self._over.is_set() or not self._speaking.acquire(blocking=False):
            return
        say(sentence)
        if team.is_first():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                team.put(f"{_NEWS}verdict", sentence)
            time.sleep(self._farewell())
        say_and_exit(None)

    def _sentence_at_abort(self) -> str | None:
        if self._left is not None:
            return None
        self._speaking.acquire(blocking=False)
        now, suspect = time.monotonic(), 0
        if team.is_first():
            suspect = max(self.heard, key=self._silence, default=0)
            is_dead = suspect != 0 and now - self.heard[suspect][1] > self.peer_timeout / 2
        else:
            is_dead = not team.coordinator_answers()
        if is_dead:
            return self.sentence_dead(suspect, now)
        return "this process was ended by an abort, whose reason is above"

    def _silence(self, process: int) -> float:
        return -self.heard[process][1]
