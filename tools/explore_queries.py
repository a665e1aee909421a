#!/usr/bin/env python3
"""Shows where each object query puts its boxes over a data set, and which queries are not used.

python tools/explore_queries.py output/mine
python tools/explore_queries.py --model detr_R_50 --input photos --queries 3 17 42 --output three.png
python tools/explore_queries.py --model output/mine/model_final.pth --dataset shapes_train --limit 500 --queries all
"""

import argparse
import os
import sys
from collections.abc import Sequence

from tabulate import tabulate
from tqdm import tqdm

import detr
from detr.checkpoint.files import WEIGHTS_OF_RUN, weights_of_run
from detr.data.loading import load_dataset
from detr.engine.registration import register_datasets
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.inference.image_inputs import find_images
from detr.inference.query_use import QueryUse, parse_queries
from detr.inference.streams import read_images
from detr.pictures.files import WRITTEN_SUFFIXES
from detr.pictures.queries import query_panels
from detr.pictures.sheets import save_picture

MOST = 20  # queries on the picture, as in the paper


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="", metavar="RUN", help="the folder of a training")
    parser.add_argument("--model", default="", help="a checkpoint or a released model's name, in the place of RUN")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--dataset", metavar="NAME", help="a registered data set; default: the config's first test set")
    images.add_argument("--input", nargs="+", metavar="PATH", help="images, folders, URLs, patterns")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--queries", nargs="+", default=[], metavar="Q", help=f"their numbers, or all; default: the {MOST} most used"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the picture; default: queries.png in RUN, or here where there is no RUN"
    )
    parser.add_argument("--confidence-threshold", type=float, metavar="P", help="least score of an object")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (%(default)s)")
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.model):
        parser.error("name either RUN, the folder of a training, or --model")
    if args.output and not args.output.lower().endswith(WRITTEN_SUFFIXES):
        parser.error(f"--output {args.output} is no picture: name a file of {', '.join(WRITTEN_SUFFIXES)}")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 where an image was skipped."""
    args = parse_args(argv)
    output = args.output or os.path.join(args.run, "queries.png")
    config = os.path.join(args.run, "config.yaml")  # names the data sets, which the config in a checkpoint does not
    weights = args.model or weights_of_run(args.run)
    if not weights:
        missing = " and ".join(WEIGHTS_OF_RUN)
        raise InputError(
            f"{args.run} is no folder of a finished training ({missing} are missing): name one, or a checkpoint with "
            "--model"
        )
    predictor = detr.Predictor(
        weights,
        config_file=config if args.run and os.path.isfile(config) else "",
        threshold=args.confidence_threshold,
        batch_size=args.batch,
    )
    if not isinstance(predictor.model, detr.Detr):
        raise InputError("an exported model does not tell its queries: name the checkpoint that it was exported from")
    wanted = parse_queries(args.queries, predictor.model.query_embed.num_embeddings)
    paths = image_paths(args, predictor)[: args.limit]
    skipped: list[str] = []

    def skip(path: str, error: InputError) -> None:
        skipped.append(path)
        tqdm.write(f"skipped: {error}", file=sys.stderr)

    items = read_images(tqdm(paths, unit="image", file=sys.stderr, disable=None), skip)
    predictions = list(predictor.predict_queries((item.image for item in items), color="RGB"))
    if not predictions:
        raise InputError("no image can be read: name others with --dataset or --input")
    use = QueryUse.of_predictions(predictions, predictor.threshold)
    shown = [query for query in use.order() if wanted is None or query in wanted]
    shown = shown[:MOST] if wanted is None else shown
    print(table(use, shown, predictor.class_names), *summary(use), sep="\n")
    save_picture(query_panels(use, shown), output)
    print(f"-> {output}" + (f"; {len(skipped)} skipped" if skipped else ""))
    return int(bool(skipped))


def image_paths(args: argparse.Namespace, predictor: detr.Predictor) -> list[str]:
    """Raises InputError for a data set that is not there, and where none is named."""
    if args.input:
        return find_images(args.input)
    cfg = predictor.cfg
    register_datasets(cfg)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise InputError("the model's config has no DATASETS.TEST: name images with --dataset or --input")
    return [x["file_name"] for x in load_dataset(args.dataset or cfg.DATASETS.TEST[0])]


def table(use: QueryUse, queries: Sequence[int], names: Sequence[str] | None) -> str:
    shares, scores = use.share().tolist(), use.scores.mean(0).tolist()
    rows = []
    for query in queries:
        best = use.most_frequent_class(query)
        label = "" if best is None else f"{names[best[0]] if names else best[0]} ({best[1]:.0%})"
        rows.append([query, f"{shares[query]:.1%}", f"{scores[query]:.3f}", label])
    headers = ("query", "kept in", "mean score", "most frequent class")
    return tabulate(rows, headers, disable_numparse=True, colalign=("right", "right", "right", "left"))


def summary(use: QueryUse) -> list[str]:
    count, dead = use.scores.shape[1], use.dead()
    threshold, images = f"a score of {use.threshold:g} or more", f"{len(use.boxes)} images"
    lines = ["", f"kept: {threshold}; {float(use.used.sum(1).float().mean()):.1f} of {count} queries an image"]
    if not dead:
        return [*lines, f"every query is kept in one of the {images} at least"]
    return [*lines, f"dead, kept in none of the {images}: {len(dead)} of {count}: {', '.join(map(str, dead))}"]


if __name__ == "__main__":
    with exit_with_one_line():
        sys.exit(main())
