"""`python -m coprs_core`: the command line."""

import argparse
import os
import sys
from pathlib import Path

from coprs_core.errors import CoPRSError

PROBES = ("sentences", "words", "heads", "zoom")
ABOUT = "CoPRS: reasoning segmentation that people can see into."
SEGMENT = """\
Find what an instruction means in a photo. The model thinks aloud, then points:
its focus token becomes a heatmap (the positional prior), and the heatmap a mask.

examples:
  python -m coprs_core segment assets/examples/rain.png "the thing that keeps the rain off" --out answer
  python -m coprs_core segment photo.jpg "the smaller dog" --model path/to/checkpoint --json
  python -m coprs_core segment photos/ "the umbrella" --out answers --probe sentences
  python -m coprs_core segment photo.jpg "the smaller dog" --out answer --again "the larger dog" --truth true.png

The bundled model "mini" knows picture-book scenes only; `python -m coprs_core scenes` draws some.

Many photos (a folder, or a glob in quotes): one folder each under --out. What is there
already is not done again; a photo that cannot be read is told and passed over.

files in --out:
  result.json   outcome, thought, masks as COCO RLE, timings, settings, package versions
  photo.png     the photo as it was read
  prior.npy     the prior, float32 [H, W] in [0, 1]; prior.png, prior_overlay.png: pictures
  mask.png      the mask, 1 bit a pixel; cutout.png: the photo inside it; overlay.png
  chain.png     photo, thought, prior and mask in one figure; chain.pdf as vectors

files of --probe KINDS, with commas:
  sentences     sentences.*: where the model would have focused after each sentence of its
                thought: priors (.npy), IoU with the answer and spread (.json), a figure (.png)
  words         words.json: the reply token by token, numbered for --word
  heads         heads.*: the attention maps before they are fused (.npy, .png)
  zoom          zoomed.*: prior and mask read again around the prior's mass, for small things

further questions about one answer:
  --word W      word_N.*: where that word's own hidden state looks (a probe: not trained for)
  --thought T   focus_again.*: where the model focuses after this thought instead of its own
  --again I     again.*: another instruction about the same photo, and the differences
  --truth FILE  truth.*: IoU of prior and mask with a true mask, over the threshold

exit codes:
  0 found · 3 nothing found · 4 unfinished · 2 a mistake in what was asked
  many photos: 0 all done · 1 some failed
"""
OPEN = """\
Show an answer that `segment --out` or the page's "Take away" saved: a folder or a zip.
Needs no model. --out writes its files anew; the app opens the zip too.

example:
  python -m coprs_core open answer.zip

exit codes:
  0 found · 3 nothing found · 4 unfinished · 2 no saved answer
"""
SCENES = """\
Draw picture-book scenes, each with an instruction and the reply that it deserves:
00000.png, 00000_mask.png (empty where nothing fits) and 00000.json. The same seed
always draws the same scenes; no two splits share one. The test split also holds
pairs of kind and colour, and wordings, that training never shows.

example:
  python -m coprs_core scenes --seed 7 --count 20 --out scenes
"""
EVALUATE = """\
Answer drawn scenes and print how well: by family of instruction, by size of the
target, and on what training never showed. gIoU is the mean IoU per example, where
both empty counts 1 and a mask where nothing fits counts 0.

example:
  python -m coprs_core evaluate --model mini --data scenes --split test --count 1000
"""
TRAIN = """\
Train the miniature from nothing, on scenes drawn as it goes: the vision tower, the
image encoder with prior and decoder, the language model, then all of them jointly.
Sizes and stages stand in coprs_core/training/mini/recipe.py. A run that was stopped goes
on where it left off; the finished checkpoint is OUT/checkpoint.

examples:
  python -m coprs_core train mini --out runs/mini
  python -m coprs_core train mini --out runs/mini --device cuda --workers 8
"""
MODELS = """\
List the models that can be loaded by name: what kind of prior they have, what they
download and need, their licence, and whether they fit this machine as it is now.

examples:
  python -m coprs_core models
  python -m coprs_core models --quantize nf4 --sam vit_b --json
"""
DOCTOR = """\
Look at this machine and at one model: versions, devices, caches, every file, the
special tokens, quantisation. The last line says "ready" or the first thing to do.
Loads no weights and asks no network.

example:
  python -m coprs_core doctor --model qwen2.5-vl-3b --quantize nf4

exit codes:
  0 ready · 1 something is to be done first
"""
CONVERT = """\
Turn the output of the authors' training (the …/actor folder, with llm_hf/ and
refseg_modules.pt, or FSDP shards model_world_size_W_rank_R.pt of any W) into a
checkpoint folder. Pickles are read for their tensors alone; every tensor is placed
or named; nothing is written unless all of it is right.

example:
  python -m coprs_core convert step_500_ep_1/actor --sam sam_vit_h_4b8939.pth --out coprs-3b
"""
PREPARE = """\
Make the starting point of training: a published model with the focus token added,
SAM's image encoder, prompt encoder and mask decoder, and a fresh query head.

example:
  python -m coprs_core prepare Qwen/Qwen2.5-VL-3B-Instruct --sam vit_h --out start-3b
"""
BENCHMARK = """\
Time one answer about a 1024×768 picture and tell its memory. With --random-weights a
checkpoint of that true size is written first (9 GB for 3b, 18 GB for 7b), loaded as
any other, and thrown away unless --folder keeps it.

examples:
  python -m coprs_core benchmark --random-weights 3b --dtype bf16
  python -m coprs_core benchmark --random-weights 7b --device cuda --quantize nf4 --folder /tmp/7b
  python -m coprs_core benchmark --model mini
"""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser("python -m coprs_core", description=ABOUT)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, page: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=page, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    p = command("segment", "find what an instruction means in a photo", SEGMENT)
    p.add_argument("photo", type=Path, metavar="PHOTO", help="a picture file, a folder of them, or a glob in quotes")
    p.add_argument("instruction", metavar="INSTRUCTION", help="what to look for, in words; at most 2,000 characters")
    p.add_argument("--out", type=Path, metavar="DIR", help="write the answer's files into this folder")
    p.add_argument("--probe", type=_probes, default=[], metavar="KINDS", help=f"{', '.join(PROBES)}; with commas")
    p.add_argument("--word", action="append", default=[], metavar="W", help="a word of the reply, or its number")
    p.add_argument("--thought", metavar="TEXT", help="a thought to be read instead of the model's own")
    p.add_argument("--again", metavar="INSTRUCTION", help="another instruction, to compare")
    p.add_argument("--again-model", metavar="NAME|FOLDER|HUB_ID", help="another model, to compare")
    p.add_argument(
        "--truth", type=Path, metavar="FILE", help="a true mask: PNG of the photo's size, or COCO RLE in .json"
    )
    p.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="bound of the reply (default: the checkpoint's own)")
    _add_model(p)

    p = command("open", "show a saved answer, without any model", OPEN)
    p.add_argument("answer", type=Path, metavar="ZIP|FOLDER", help='what `segment --out` or "Download" wrote')
    p.add_argument("--out", type=Path, metavar="DIR", help="write the answer's files into this folder")
    p.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")

    p = command("scenes", "draw picture-book scenes with questions and replies", SCENES)
    p.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first scene (default 0)")
    p.add_argument("--count", type=_count, default=10, metavar="N", help="how many (default 10)")
    p.add_argument("--split", choices=("train", "validation", "test"), default="train")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")

    p = command("evaluate", "measure a checkpoint on drawn scenes", EVALUATE)
    p.add_argument("--data", choices=("scenes",), default="scenes", help="what to answer (default: scenes)")
    p.add_argument("--split", choices=("train", "validation", "test"), default="test")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first scene (default 0)")
    p.add_argument("--count", type=_count, default=1000, metavar="N", help="how many scenes (default 1000)")
    p.add_argument("--json", action="store_true", help="print all figures, and every row, as JSON")
    _add_model(p)

    p = command("train", "train the miniature from nothing", TRAIN)
    p.add_argument("recipe", choices=("mini",), help="the recipe: mini")
    p.add_argument(
        "--out", type=Path, default=Path("runs/mini"), metavar="DIR", help="checkpoints and logs (default runs/mini)"
    )
    p.add_argument(
        "--stage", choices=("eyes", "focus", "language", "joint"), help="this stage alone (default: all that are left)"
    )
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default auto)")
    p.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that draw scenes (default 0: the run itself)"
    )
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")

    p = command("models", "list what can be loaded, and whether it fits this machine", MODELS)
    p.add_argument("--json", action="store_true", help="print the table as JSON; sizes in bytes")
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default auto)")
    p.add_argument("--quantize", default="none", choices=("none", "nf4", "int8"), help="as it would be loaded")
    p.add_argument("--sam", default="vit_h", choices=("vit_b", "vit_l", "vit_h"), help="as it would be loaded")

    p = command("doctor", "look at this machine and one model; say what to do first", DOCTOR)
    _add_model(p)

    p = command("convert", "turn the authors' training output into a checkpoint folder", CONVERT)
    p.add_argument("folder", type=Path, metavar="ACTOR_FOLDER", help="holds llm_hf/ and refseg_modules.pt, or shards")
    _add_making(p)

    p = command("prepare", "make the starting point of training from a published model", PREPARE)
    p.add_argument("base", metavar="MODEL", help="a Hugging Face id or folder of Qwen2.5-VL, Qwen3-VL or LLaVA-1.5")
    _add_making(p)

    p = command("benchmark", "time one answer and tell its memory", BENCHMARK)
    p.add_argument("--random-weights", choices=("3b", "7b"), help="true size, random weights")
    p.add_argument("--folder", type=Path, metavar="DIR", help="keep the random checkpoint here, or use the one kept")
    p.add_argument("--tokens", type=_count, default=8, metavar="N", help="tokens to write before the focus token")
    p.add_argument("--json", action="store_true", help="print figures as JSON; bytes and seconds")
    _add_model(p)
    return main


def _add_making(p: argparse.ArgumentParser) -> None:
    p.add_argument("--sam", required=True, metavar="NAME|FILE", help="vit_b, vit_l, vit_h or a .pth file")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    p.add_argument("--prompt", type=Path, metavar="FILE", help="the prompt template, with {image} and {instruction}")
    p.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32, of the large parts (default bf16)")


def _add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER|HUB_ID",
        help="a name of `models`, a checkpoint folder or a Hugging Face id (default mini)",
    )
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default auto)")
    p.add_argument(
        "--dtype", default="auto", help="auto, bf16, fp16 or fp32 (default auto: bf16 on a GPU, fp32 on a CPU)"
    )
    p.add_argument(
        "--sam",
        default="vit_h",
        metavar="NAME|FILE",
        help="vit_b, vit_l, vit_h or a .pth file, for models that write coordinates (default vit_h)",
    )
    p.add_argument(
        "--quantize", default="none", help="none, nf4 or int8: the language model's linear layers (default none)"
    )


def _probes(text: str) -> list[str]:
    kinds = [k.strip() for k in text.split(",") if k.strip()]
    if unknown := sorted(set(kinds) - set(PROBES)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not known: choose of {', '.join(PROBES)}")
    return kinds


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    from coprs_core import commands  # after parsing: --help answers at once

    run = {
        "segment": commands.segment,
        "open": commands.open_saved,
        "scenes": commands.scenes,
        "evaluate": commands.evaluate_model,
        "train": commands.train,
        "models": commands.models,
        "doctor": commands.examine,
        "convert": commands.convert_checkpoint,
        "prepare": commands.prepare,
        "benchmark": commands.measure,
    }
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its number instead
        stream.reconfigure(errors="backslashreplace") if hasattr(stream, "reconfigure") else None
    try:
        return run[options.command](options)
    except CoPRSError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return commands.USER_MISTAKE
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as problem:  # a disk or a folder that cannot be used
        where = f" ({problem.filename})" if problem.filename else ""
        print(f"error: {problem.strerror or problem}{where}: check the path, its rights and the disk.", file=sys.stderr)
        return commands.USER_MISTAKE


if __name__ == "__main__":
    sys.exit(main())
