"""Goals about submits, webhooks and Redis while they die (R3, R4, R12, R15, R20, R24)."""

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import redis
from sqlalchemy import func, select

from app.db.models import Request
from tests.faults.client import Accepted
from tests.faults.scene import Asked, Figure, Scene, scene
from tests.faults.stack import Layout

THREADS = 8
HANGS_S = 5.0
"""No submit may take longer, whatever is broken."""
DYING = ("submit.before_commit", "submit.after_commit", "store.before_put")
"""Where gateways die in R4; the last is the probe of their readiness."""


def r3(asked: Asked) -> Figure:
    """SIGKILL of Redis during submits, now and then with its files."""
    figure = Figure("R3")
    kills = asked.times(8)
    with scene(figure, asked.seed, Layout(gateways=1, queues=())) as on:
        stack = on.stack
        assert stack.redis is not None

        def kill(number: int) -> None:
            assert stack.redis is not None
            stack.redis.kill()
            if number % 5 == 4:
                shutil.rmtree(stack.folder / "redis")
                (stack.folder / "redis").mkdir()
            time.sleep(on.rng.uniform(0.2, 1.0))
            stack.redis.start()

        _submit_while(on, figure, kills, kill, pause_s=(0.5, 2.0))
        figure.require(on.client.longest_s <= HANGS_S, f"a submit took {on.client.longest_s:.1f} s")
        _cancel_all(on)
        on.judged(figure, tuple(one.request_id for one in on.client.accepted))
    figure.numbers["SIGKILLs of Redis"] = kills
    return figure


def r4(asked: Asked) -> Figure:
    """SIGKILL of gateways during submits that are repeated with their Idempotency-Key."""
    figure = Figure("R4")
    kills = asked.times(8)
    with scene(figure, asked.seed, Layout(gateways=2, queues=())) as on:

        def kill(number: int) -> None:
            on.stack.until(on.stack.ready, 60.0, "a gateway that is ready")
            victim = on.stack.gateways[number % 2]
            if on.rng.random() < 0.5:
                on.stack.arm(on.rng.choice(DYING), "kill")
                time.sleep(0.3)
            victim.kill()
            on.stack.restart_dead()

        _submit_while(on, figure, kills, kill, pause_s=(0.5, 2.0))
        on.stack.heal()
        figure.numbers["killed at a failpoint besides"] = len(on.stack.fired())
        _cancel_all(on)
        on.judged(figure, tuple(one.request_id for one in on.client.accepted))
    figure.numbers["SIGKILLs of gateways"] = kills
    return figure


def r12(asked: Asked) -> Figure:
    """Webhooks to a receiver that fails three in ten, while their senders are killed."""
    figure = Figure("R12")
    kills = asked.times(5)
    number = max(200, 50 * kills)
    layout = Layout(gateways=2, queues=(), env={"REELSMITH_WEBHOOK_PACE": "0.03"})
    with scene(figure, asked.seed, layout, hooks=True) as on:
        places = ("webhook.before_post", "webhook.after_post", "webhook.after_mark")
        for done in range(kills):
            ones = _submit_many(on, number // kills)
            on.stack.arm(places[done % 3], "kill")
            _cancel_all(on, ones)
            on.stack.until(lambda: len(on.stack.fired()) > done, 60.0, "a killed sender")
            on.stack.restart_dead()
        on.judged(figure, tuple(one.request_id for one in on.client.accepted))
        received = on.stack.hooks.received
        bodies: dict[str, set[bytes]] = {}
        for hook in received:
            bodies.setdefault(hook.headers["x-fal-webhook-request-id"], set()).add(hook.body)
        changed = sum(len(found) > 1 for found in bodies.values())
        figure.require(changed == 0, f"{changed} webhooks changed between two attempts")
        figure.numbers |= {
            "SIGKILLs of senders": len(on.stack.fired()),
            "POSTs": len(received),
            "POSTs that got no 200": sum(not hook.taken for hook in received),
            "taken twice": sum(hook.taken for hook in received) - len(on.client.accepted),
        }
    return figure


def r15(asked: Asked) -> Figure:
    """Every first answer to a submit is lost on its way."""
    figure = Figure("R15")
    with scene(figure, asked.seed, Layout(gateways=2, queues=())) as on:
        for _ in range(asked.times(200)):
            on.stack.front.lost_answers = 1
            on.client.submit("check")
        on.stack.front.lost_answers = 0
        with on.stack.database.read() as session:
            rows = session.scalar(select(func.count()).select_from(Request))
        figure.numbers |= {"calls": len(on.client.accepted), "POSTs": on.client.posts, "rows": rows}
        figure.require(on.client.posts == 2 * len(on.client.accepted), "not every answer was lost")
        figure.require(rows == len(on.client.accepted), "a repetition made another request")
        _cancel_all(on)
        on.judged(figure, tuple(one.request_id for one in on.client.accepted))
    return figure


def r20(asked: Asked) -> Figure:
    """Redis has no memory left: submits are taken, and run once it has."""
    figure = Figure("R20")
    from tests.faults.worker_goals import light

    with scene(figure, asked.seed, light(1)) as on:
        assert on.stack.redis_wire is not None
        server = redis.Redis(port=on.stack.redis_wire.upstreams[0])
        server.config_set("maxmemory", 1)
        on.stack.until(lambda: _refuses(server), 10.0, "a full Redis")
        ones = _submit_many(on, asked.times(50))
        refused = sum("wake_up.not_sent" in part.log for part in on.stack.gateways)
        figure.require(refused, "no wake-up was refused")
        server.config_set("maxmemory", 0)
        server.close()
        on.until_ended(*ones)
        answers = on.client.seen
        figure.numbers |= {"submits while full": len(ones), "answers": dict(answers)}
        figure.require(set(answers) == {200}, f"answers: {answers}")
        figure.require(
            all(on.row(one).result_status == 200 for one in ones), "not all of them ran"
        )  # fmt: skip
    return figure


def r24(asked: Asked) -> Figure:
    """The log of Redis is cut at random bytes: it loads, and every request runs all the same."""
    figure = Figure("R24")
    from tests.faults.worker_goals import light

    rounds = asked.times(50)
    layout = light(1)
    with scene(figure, asked.seed, layout) as on:
        stack = on.stack
        assert stack.redis is not None
        (worker,) = stack.workers["cpu"]
        worker.kill()
        with ThreadPoolExecutor(THREADS) as pool:
            ones = [one for one in pool.map(lambda _: on.client.submit("check"), range(40)) if one]
        time.sleep(1.0)
        stack.redis.kill()
        kept = stack.folder / "redis-kept"
        shutil.copytree(stack.folder / "redis", kept)
        loaded = sum(
            _loads(kept, stack.folder / f"cut-{number}", on.rng) for number in range(rounds)
        )
        torn = stack.folder / "torn"
        cut_at = _torn(kept, torn, on.rng)
        shutil.rmtree(stack.folder / "redis")
        torn.rename(stack.folder / "redis")
        stack.restart_dead()
        on.until_ended(*ones)
        figure.numbers |= {"cuts": rounds, "loaded": loaded, "requests run after one": len(ones)}
        figure.require(loaded == rounds, f"{rounds - loaded} cut logs did not load")
        figure.require(cut_at > 0, "nothing was cut")
    return figure


def _loads(kept: Path, folder: Path, rng: random.Random) -> bool:
    """Whether a server starts on a copy that is cut somewhere."""
    _torn(kept, folder, rng)
    server = shutil.which("redis-server")
    assert server is not None
    socket = folder / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]
    process = subprocess.Popen(
        [server, *options, "--appendonly", "yes", "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with redis.Redis(unix_socket_path=str(socket)) as client:
                    if client.ping():
                        return True
            except redis.RedisError:
                time.sleep(0.02)
        return False
    finally:
        process.kill()
        process.wait()


def _torn(kept: Path, folder: Path, rng: random.Random) -> int:
    """A copy whose log ends early; how many bytes are left of it."""
    shutil.copytree(kept, folder)
    (log,) = folder.glob("appendonlydir/*.incr.aof")
    length = rng.randrange(1, log.stat().st_size)
    with log.open("r+b") as file:
        file.truncate(length)
    return length


def _refuses(server: "redis.Redis") -> bool:
    try:
        server.lpush("faults", "x")
    except redis.RedisError:
        return True
    return False


def _submit_while(
    on: Scene,
    figure: Figure,
    kills: int,
    kill: Callable[[int], None],
    pause_s: tuple[float, float],
) -> None:
    """Threads that submit until ``kills`` have been."""
    over = threading.Event()
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            while not over.is_set():
                on.client.submit("check", limit_s=120.0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=submit) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for number in range(kills):
        time.sleep(on.rng.uniform(*pause_s))
        kill(number)
    time.sleep(1.0)
    on.stack.heal()
    over.set()
    for thread in threads:
        thread.join()
    figure.findings += [repr(error) for error in errors]
    figure.numbers |= {
        "accepted": len(on.client.accepted),
        "POSTs": on.client.posts,
        "answers": dict(sorted(on.client.seen.items())),
        "longest answer, s": round(on.client.longest_s, 2),
    }


def _submit_many(on: Scene, number: int) -> list[Accepted]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [one for one in pool.map(lambda _: on.client.submit("check"), range(number)) if one]


def _cancel_all(on: Scene, ones: list[Accepted] | None = None) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(on.cancel, on.client.accepted if ones is None else ones))
