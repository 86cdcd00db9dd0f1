"""Stands in for Hugging Face's package `spaces` on a Space with a borrowed GPU, and holds to its
rules: decorated work runs in a forked process, everything that crosses is pickled, what is cached
inside is lost, and outside nobody touches CUDA."""

import inspect
import multiprocessing
import os
import pickle

import gradio as gr
import torch

CALLS = []  # (process id of the work, seconds asked for)


def _no_cuda(*_, **__):
    raise RuntimeError("CUDA was touched outside of @spaces.GPU")


torch.cuda._lazy_init = _no_cuda


def GPU(function=None, *, duration=60):
    if function is None:
        return lambda f: GPU(f, duration=duration)
    assert inspect.isgeneratorfunction(function), "only generators are expected here"

    def borrowed(*args):
        seconds = duration(*args) if callable(duration) else duration
        assert isinstance(seconds, int) and 0 < seconds <= 120, seconds
        sent = pickle.dumps(args)
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        worker = multiprocessing.get_context("fork").Process(
            target=_work, args=(function, sent, theirs, ours), daemon=True
        )
        worker.start()
        theirs.close()
        CALLS.append((worker.pid, seconds))
        try:
            while (said := _received(ours))[0] == "yield":
                yield said[1]
                ours.send_bytes(b"go on")
            if said[0] == "error":
                raise RuntimeError(f"an exception crossed the border: {said[1]}")
        finally:
            ours.close()
            worker.join(5)
            assert not worker.is_alive(), "the work went on after it was closed"

    return borrowed


def _received(pipe):
    try:
        return pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):  # the process was killed
        raise gr.Error("GPU task aborted") from None


def _work(function, sent, pipe, others_end):
    others_end.close()
    torch.cuda._lazy_init = lambda *_: None
    assert os.getpid() != os.getppid()
    try:
        for value in function(*pickle.loads(sent)):
            pipe.send_bytes(pickle.dumps(("yield", value)))
            pipe.recv_bytes()
        pipe.send_bytes(pickle.dumps(("end", None)))
    except (EOFError, BrokenPipeError):
        pass
    except BaseException as problem:
        pipe.send_bytes(pickle.dumps(("error", repr(problem))))
    os._exit(0)
