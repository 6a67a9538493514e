"""Every command in a README works: it is run, parsed by its own program, or run by another test of this suite.

`TABLE` has a row for each command. A command without a row fails, and so does a row without a command.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from alexnet_triton.__main__ import COMMANDS as SUBCOMMANDS
from alexnet_triton.__main__ import main
from alexnet_triton.client import Classifier
from alexnet_triton.client.protocol import parse_label
from alexnet_triton.common.command import Parser
from alexnet_triton.serving.server import Server
from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.model import AlexNet, NetworkConfig
from main_job import ROOT, MainJob
from tests.serving.tiny import jpeg, running_server

BIN = Path(sys.prefix) / "bin"
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("[!.a]*/README.md")), *sorted(ROOT.glob("loadtest/*/README.md"))]
DOCUMENTS += sorted(ROOT.glob("docs/**/*.md"))
ACTIVATE = ". .venv/bin/activate"
OURS = {"alexnet-triton", "alexnet-classify", "python", "locust", "torchrun"}  # programs of the environment
OTHERS = {"make", "time", "docker", "git", "curl", "sudo", "helm", "kubectl"}
TIMEOUT_S = 200


@dataclass(frozen=True)
class Run:
    """Run in a shell, in the repository or in `folder` of the test's own, with some words replaced."""

    replace: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Photos(Run):
    """Run in a folder that holds photos/train and photos/test, in the order of the table."""


@dataclass(frozen=True)
class Parse:
    """Only parsed, by its own program: why it is not run here."""

    reason: str


@dataclass(frozen=True)
class Covered:
    """Run by another test: file::function."""

    test: str


LONG = Parse("trains or measures for minutes")
GPU = Parse("needs Docker or a GPU")
CLUSTER = Parse("needs a cluster")
RENDERED = Covered("tests/kubernetes/test_chart.py::test_lint")
FOREGROUND = Parse("runs until Ctrl-C; tests/serving and tests/docker start it")
SERVED = Run({"http://127.0.0.1:8000": "{http}", "artifacts/pictures": "{pictures}"})  # on the tests' server
PHOTOS = Covered("tests/test_readme.py::test_your_own_photographs")
BENCH = Covered("tests/loadtest/bench/test_bench.py::test_every_stage_says_where_and_how_it_was_measured")
SCALE = Covered("tests/loadtest/bench/test_scale.py::test_every_axis_on_a_real_server")
TUNED_PEERS = Covered("tests/loadtest/bench/test_tune.py::test_a_peer_is_tuned_and_served_with_what_was_found")
PROFILE = Covered("tests/loadtest/bench/test_bench.py::test_profile_adds_up")
SUITE = Covered("tests/faults/test_faults.py::test_the_short_form_passes")
CLAIMS = Covered("tests/training/test_claims.py::test_every_claim_has_a_picture_a_verdict_a_line_and_figures")
STEPS = Covered("tests/training/test_step_speed.py::test_every_variant_is_measured_in_every_round")
CHOICE = Covered("tests/training/test_choose_recipe.py::test_every_setting_is_measured_on_held_out_images")
EVALUATE = Covered("tests/training/test_evaluate.py::test_the_command_prints_and_writes_the_same_figures")
DIVIDED = Covered("tests/training/test_survey.py::test_a_divided_folder_is_trained_on_and_its_test_split_written")
FLEET = Covered("tests/bulk/test_cluster.py::test_a_store_and_running_servers")
LOCUST = Covered("tests/loadtest/test_locust.py::test_every_user_on_a_real_server")
STALL = Covered("tests/loadtest/test_truth.py::test_the_open_loop_sees_a_stall_and_the_closed_loop_hides_it")
LOCUST_PAGE = Covered("tests/loadtest/test_locust.py::test_the_web_page_starts_a_load")
LOCUST_WORKERS = Covered("tests/loadtest/test_locust.py::test_two_workers_add_up")

# A request's JSON, the file's length in 4 bytes, and the file, to curl.
CURL = (
    "n=$(wc -c <artifacts/pictures/Bag/00030.jpeg); { printf "
    """'{"inputs":[{"name":"encoded","datatype":"BYTES","shape":[1,1],"parameters":{"binary_data_size":%8d}}],"""
    """"outputs":[{"name":"probabilities","parameters":{"classification":5}}]}' $((n+4)); printf $(printf """
    r"'\\%03o' $((n%256)) $((n/256%256)) $((n/65536%256)) $((n/16777216))); cat artifacts/pictures/Bag/00030.jpeg; } "
    "| curl -s"
)

TABLE: dict[str, Run | Parse | Covered] = {
    # the targets of make
    "python docs/served_accuracy.py --repository artifacts/imagenet/model_repository --images photos": Covered(
        "tests/loadtest/test_served_accuracy.py::test_photographs_through_a_server_in_two_precisions"
    ),
    "make imagenet": Covered("tests/export/test_imagenet.py::test_photographs_are_named_without_training"),
    "make demo": Covered("tests/test_main_job.py::test_demo_printed_five_labels_a_picture_over_both_protocols"),
    "make test": Parse("these tests"),
    "make long": Parse("tests of their own"),
    "make help": Run(),
    "make serve": FOREGROUND,
    "make gpu": Covered("tests/loadtest/bench/test_gpu_check.py::test_make_ends_in_one_line_before_anything_is_made"),
    "make gpu-check": Covered(
        "tests/loadtest/bench/test_gpu_check.py::test_make_ends_in_one_line_before_anything_is_made"
    ),
    "alexnet-triton gpu-check --only engine served": Covered(
        "tests/loadtest/bench/test_gpu_check.py::test_a_step_again_leaves_the_others_figures"
    ),
    "make gateway": FOREGROUND,
    "make export": Covered("tests/export/test_pipeline.py::test_every_precision_is_compared"),
    "make bench": LONG,
    "make bench STAGES=served IMAGES=photos": LONG,
    "make bench STAGES=tensors IMAGES=photos": LONG,
    "make bench STAGES=single IMAGES=photos": LONG,
    'make bench STAGES="served single" IMAGES=FOLDER_OF_PHOTOGRAPHS': LONG,
    "make train": LONG,
    "time make demo": LONG,
    "make loadtest": Covered("tests/loadtest/test_sweep.py::test_batching_off_is_measured_on_a_server_of_its_own"),
    "make claims DATASET=cifar10": CLAIMS,
    # millions of files
    "alexnet-triton bulk photos --output artifacts/answers": Covered("tests/bulk/test_cluster.py::test_on_one_machine"),
    "alexnet-triton bulk s3://photos --output artifacts/answers --address 10.0.0.5:6379": FLEET,
    "alexnet-triton bulk photos --output artifacts/answers --url grpc://127.0.0.1:8001": FLEET,
    "python docs/bulk.py --repository artifacts/imagenet/model_repository --images photos": LONG,
    # training
    "alexnet-triton train --data photos --check": Photos(),
    "alexnet-triton train --data photos --init imagenet --budget 600 --output artifacts/photos/checkpoint.pt": Photos(
        {"--init imagenet --budget 600": "--init trained.pt --budget 2"}  # the test's own: nothing is fetched
    ),
    "alexnet-triton train --data photos --init imagenet": Covered(
        "tests/training/test_finetune.py::test_published_weights_are_fetched_and_taken_over"
    ),
    "python docs/finetune.py --images photos --json finetune.json": Covered(
        "tests/training/test_finetune.py::test_the_comparison_with_training_from_nothing"
    ),
    "alexnet-triton pictures --data photos --to artifacts/photos/test": DIVIDED,
    "alexnet-triton to-onnx artifacts/photos/checkpoint.pt artifacts/photos/model.onnx "
    "--images artifacts/photos/test": PHOTOS,
    "alexnet-triton train --data fashion-mnist": Covered("tests/training/test_train.py::test_a_short_training_learns"),
    "alexnet-triton train --data fashion-mnist --recipe fast --budget 1500": LONG,
    "alexnet-triton train --data fashion-mnist --recipe fast --budget 2400": LONG,
    "alexnet-triton train --data photos --recipe fast --no-lrn --budget 2280": LONG,
    "alexnet-triton train --data cifar10 --recipe fast --epochs 5": LONG,
    "alexnet-triton train --data photos --recipe paper": LONG,
    "torchrun --nproc-per-node 2 -m alexnet_triton train --data photos --recipe paper": Covered(
        "tests/training/test_run.py::test_two_processes_make_the_steps_of_one"
    ),
    "alexnet-triton evaluate artifacts/checkpoint.pt --data fashion-mnist": EVALUATE,
    "alexnet-triton evaluate artifacts/checkpoint.pt --data fashion-mnist --crops 10 "
    "--confusion confusion.png --json accuracy.json": EVALUATE,
    "python docs/choose_recipe.py --recipe demo": CHOICE,
    "python docs/choose_recipe.py --recipe fast --json fast.choice.json": CHOICE,
    "alexnet-triton figures artifacts/checkpoint.pt --images artifacts/pictures --to artifacts/figures": Covered(
        "tests/training/test_figures.py::test_one_command_draws_both_figures"
    ),
    "alexnet-triton evaluate artifacts/checkpoint.pt --data fashion-mnist --mistakes mistakes.html": EVALUATE,
    "python docs/step_speed.py --json step-speed.json": STEPS,
    # the chart's pods
    "python -m docs.rollout": Covered("tests/kubernetes/test_rollout.py::test_no_request_fails"),
    "python -m docs.rollout --pre-stop 15": Covered(
        "tests/kubernetes/test_rollout.py::test_the_command_prints_every_act_and_fails_with_a_request"
    ),
    "python -m docs.autoscale --png docs/autoscale.png --json docs/autoscale.json": Covered(
        "tests/kubernetes/test_autoscale.py::test_the_table_the_picture_and_the_figures"
    ),
    "python -m docs.autoscale --validate": Covered(
        "tests/kubernetes/test_autoscale.py::test_real_pods_are_asked_and_compared"
    ),
    "python docs/step_speed.py --batch 32 --rounds 5 --repeats 2": STEPS,
    "alexnet-triton claims --only dropout": Covered(
        "tests/training/test_claims.py::test_one_claim_again_leaves_the_others_and_what_was_found_before"
    ),
    # export
    "alexnet-triton export artifacts/photos/checkpoint.pt --test photos/test --onnx artifacts/photos/onnx "
    "--repository artifacts/photos/model_repository": Photos({"--onnx": "--rounds 1 --force --onnx"}),
    "alexnet-triton export artifacts/checkpoint.pt --test artifacts/test --calibration artifacts/calibration": Covered(
        "tests/export/test_pipeline.py::test_every_precision_is_compared"
    ),
    "alexnet-triton to-onnx artifacts/checkpoint.pt artifacts/onnx/model.onnx --images artifacts/pictures": PHOTOS,
    "alexnet-triton publish artifacts/onnx/model.onnx --images artifacts/pictures": PHOTOS,
    "alexnet-triton export resnet50.onnx --labels labels.txt --preset torchvision --test photos/test --name resnet50 "
    "--onnx artifacts/resnet50": Covered("tests/export/test_resnet_example.py::test_published_served_and_asked"),
    "alexnet-triton rollback": Covered(
        "tests/export/test_live.py::test_publish_rollback_and_broken_publications_under_load"
    ),
    "alexnet-triton verify artifacts/onnx/model.int8.onnx --against artifacts/checkpoint.pt "
    "--images artifacts/test": Covered("tests/export/test_verify_command.py::test_every_runtime_has_a_row"),
    # serving
    "alexnet-triton serve --repository artifacts/model_repository": Covered(
        "tests/serving/test_cli.py::test_runs_until_ctrl_c"
    ),
    "alexnet-triton serve --repository artifacts/photos/model_repository": PHOTOS,
    "alexnet-triton status": Covered("tests/serving/test_cli.py::test_status_and_stop"),
    "alexnet-triton stop": Covered("tests/serving/test_cli.py::test_status_and_stop"),
    "alexnet-triton --help": Run(),
    # the client
    "python client/classify.py artifacts/pictures/Bag/00030.jpeg": SERVED,
    "python client/classify.py artifacts/pictures/*/00*.jpeg --url http://127.0.0.1:8000 --format json": SERVED,
    "alexnet-classify artifacts/pictures/Bag/00030.jpeg --url http://127.0.0.1:8000": SERVED,
    "alexnet-classify --recursive artifacts/pictures --save-annotated answers": Run(
        {"artifacts/pictures": "{pictures}/Bag", "answers": "{own}/answers"}
    ),
    "alexnet-classify info": SERVED,
    "alexnet-classify --recursive photos --output photos.jsonl --concurrency 32 --resume "
    "--save-annotated answers": Photos(),
    f"{CURL} -H 'Content-Type: application/octet-stream' -H 'Inference-Header-Content-Length: 178' --data-binary @- "
    "http://127.0.0.1:8000/v2/models/classify/infer": Covered("tests/test_readme.py::test_labels_by_plain_curl"),
    # load
    "alexnet-triton loadtest run --rate 100 --duration 30s --slo p99=100ms,errors=0.1%,rate=95": Run(
        {
            "--rate 100 --duration 30s": "--images {pictures} --limit 8 --rate 20 --warmup 0.2s --duration 1s",
            "p99=100ms,errors=0.1%,rate=95": "p99=30s,errors=0.1%,rate=1 --no-report --output {own}",
        }
    ),
    "alexnet-triton loadtest run --repository artifacts/model_repository --rate 100": Covered(
        "tests/loadtest/test_sweep.py::test_batching_off_is_measured_on_a_server_of_its_own"
    ),
    "alexnet-triton loadtest run --replay artifacts/logs/gateway.jsonl --speed 2 --slo p99=100ms,errors=0.1%": Covered(
        "tests/loadtest/test_replay.py::test_replayed_at_twice_the_speed"
    ),
    "alexnet-triton loadtest run --rate 3000 --arrivals constant": Covered(
        "tests/loadtest/test_run.py::test_a_real_server"
    ),
    "alexnet-triton loadtest run --rate 200": STALL,
    "alexnet-triton loadtest run --users 4": STALL,
    "alexnet-triton loadtest mlperf --scenario Offline --accuracy --target-accuracy 85% "
    "--limit 10000 --images artifacts/test": Covered(
        "tests/loadtest/test_mlperf.py::test_accuracy_is_that_of_the_network"
    ),
    "locust -f loadtest/locustfile.py": LOCUST_PAGE,
    "locust -f loadtest/locustfile.py --headless -u 16 -r 16 -t 30s": LOCUST,
    "locust -f loadtest/locustfile.py GrpcFiles --headless -u 16 -r 16 -t 30s --processes 2": LOCUST_WORKERS,
    "locust -f loadtest/locustfile.py --master": LOCUST_WORKERS,
    "locust -f loadtest/locustfile.py --worker --master-host HOST": LOCUST_WORKERS,
    "alexnet-triton bench served tensors single --images FOLDER --connections 64 --repeats 2 --seconds 5": BENCH,
    "alexnet-triton bench served batching --images FOLDER --connections 64": BENCH,
    "alexnet-triton bench overload --overload-s 60": BENCH,
    "python docs/connections.py --repository artifacts/model_repository --images FOLDER --connections 64 256 1000 "
    "--target LitServe --seconds 10 --repeats 2": Covered(
        "tests/docker/test_measuring.py::test_many_callers_are_compared_with_64"
    ),
    "alexnet-triton bench profile": PROFILE,
    "alexnet-triton bench tensors single profile --images FOLDER": PROFILE,
    "alexnet-triton bench profile --images FOLDER --json profile.json": PROFILE,
    "alexnet-triton bench tune --peer LitServe --peer Mosec --images FOLDER": TUNED_PEERS,
    "alexnet-triton bench scale --images FOLDER --json scale.json": SCALE,
    "alexnet-triton bench scale --images FOLDER --seconds 4": SCALE,
    "alexnet-triton bench gateway-cost gateway-slow": Covered(
        "tests/docker/test_measuring.py::test_both_sides_answer_every_request"
    ),
    "make faults": SUITE,
    "make faults QUICK=1": SUITE,
    "make faults IMAGES=photos": SUITE,
    # docker
    f'{CURL} --cacert artifacts/gateway/certificate.pem -H @<(echo "Authorization: Bearer $(docker/key.sh me)") '
    "-H 'Content-Type: application/octet-stream' -H 'Inference-Header-Content-Length: 178' --data-binary @- "
    "https://localhost:8443/v2/models/classify/infer": Covered(
        "tests/docker/test_gateway.py::test_labels_by_plain_curl"
    ),
    "git clone REPOSITORY alexnet-triton && cd alexnet-triton": Parse("the repository has no address yet"),
    "docker/check_gpu.sh": Covered("tests/docker/test_images.py::test_shell_and_python_have_one_rule"),
    "docker/build_engine.sh": Covered("tests/docker/test_images.py::test_engine_is_built_verified_and_published_once"),
    "docker/prepare.sh --gpu": Covered(
        "tests/docker/test_images.py::test_a_gpu_that_the_images_do_not_run_on_is_refused_before_anything_is_made"
    ),
    "docker compose -f docker/compose.yaml --profile gpu build": GPU,
    "docker compose -f docker/compose.yaml --profile gpu up -d --wait": GPU,
    "docker compose -f docker/compose.yaml --profile gpu down": GPU,
    "docker compose -f docker/compose.yaml run --rm gpu-check": Covered(
        "tests/docker/test_images.py::test_a_gpu_is_measured_as_the_command_takes_it"
    ),
    "docker compose -f docker/compose.yaml run --rm client /artifacts/pictures/Bag/00030.jpeg": GPU,
    "docker/key.sh me": Covered("tests/docker/test_start.py::test_new_keys_are_taken_without_a_stop"),
    "docker/key.sh NAME": Covered("tests/docker/test_images.py::test_key_refuses_a_name"),
    "python docker/ask.py artifacts/pictures/Bag/00030.jpeg": Covered(
        "tests/docker/test_images.py::test_ask_finds_address_and_key"
    ),
    "python client/classify.py IMAGE --url https://localhost:8443 --ca artifacts/gateway/certificate.pem "
    "--header @FILE": Covered("tests/docker/test_gateway.py::test_classify_command"),
    # kubernetes
    "docker tag alexnet-triton-serve registry.example.com/alexnet-triton-serve:0.1.0": GPU,
    "docker push registry.example.com/alexnet-triton-serve:0.1.0": GPU,
    r"printf 'FROM busybox:1.37\nCOPY model_repository /artifacts/model_repository\nCOPY onnx /artifacts/onnx\n"
    r"COPY pictures /artifacts/pictures\n' | docker build -t registry.example.com/alexnet-models:1 -f - artifacts": GPU,
    "docker push registry.example.com/alexnet-models:1": GPU,
    "docker/prepare.sh alexnet-gateway.vision.svc": Covered(
        "tests/docker/test_images.py::test_prepare_makes_a_certificate_for_a_host"
    ),
    "kubectl create namespace vision": CLUSTER,
    "kubectl --namespace vision create secret generic alexnet-keys --from-file=keys=artifacts/gateway/keys": CLUSTER,
    "kubectl --namespace vision create secret tls alexnet-certificate --cert=artifacts/gateway/certificate.pem "
    "--key=artifacts/gateway/certificate.key": CLUSTER,
    "helm lint kubernetes/chart --values kubernetes/values/cpu.yaml": RENDERED,
    "helm upgrade --install alexnet kubernetes/chart --namespace vision --values kubernetes/values/cpu.yaml --wait "
    "--timeout 15m": RENDERED,
    "helm upgrade alexnet kubernetes/chart --namespace vision --values kubernetes/values/cpu.yaml "
    "--values kubernetes/values/keda.yaml": RENDERED,
    "helm upgrade --install prometheus-adapter prometheus-community/prometheus-adapter --namespace monitoring "
    "--values kubernetes/prometheus-adapter.yaml": Covered(
        "tests/kubernetes/test_autoscaling.py::test_the_recorded_series_is_found_by_its_labels"
    ),
    "helm history alexnet --namespace vision": CLUSTER,
    "helm rollback alexnet --namespace vision --wait --timeout 15m": CLUSTER,
    "kubectl --namespace vision port-forward service/alexnet-gateway 8443:443": CLUSTER,
    "kubectl --namespace vision rollout restart deployment/alexnet-gateway": CLUSTER,
    "kubectl apply --filename kubernetes/kserve.yaml": Covered(
        "tests/kubernetes/test_schemas.py::test_kserve_knows_every_field"
    ),
}


# ---- finding the commands

MENTION = re.compile(
    r"(?:\.venv/bin/)?alexnet-triton((?: [a-z]+(?:-[a-z]+)?){1,2})|git clone"
)  # named, not to be typed


@dataclass(frozen=True)
class Command:
    document: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"

    @property
    def key(self) -> str:
        """Its row of the table, which says nothing of the environment."""
        return self.text.replace(".venv/bin/", "")


def find_commands(path: Path) -> Iterator[Command]:
    """The lines of shell blocks, the commands in other blocks, and those in code spans, of tables or of the text."""
    document, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    lines = [(line, kind == "sh") for kind, block in fences.findall(text) for line in joined(block)]
    rest = fences.sub("", text)
    indented = "\n".join(line[4:] for line in rest.splitlines() if line.startswith("    "))
    lines += [(line, False) for line in joined(indented)]
    lines += [(span, False) for span in re.findall(r"`([^`\n]+)`", rest) if not MENTION.fullmatch(span)]
    for line, certain in lines:
        command = re.split(r"\s+#\s|\s{3,}", line.strip())[0]  # what follows is said about it
        if (certain and command) or is_command(command):
            yield Command(document, command)


def joined(block: str) -> list[str]:
    """Lines, with those that end in a backslash continued."""
    return [line for line in re.sub(r" *\\\n *", " ", block).splitlines() if not line.startswith("$ ")]


def is_command(text: str) -> bool:
    """Whether a line or code span can be typed: a program of this project's with words after it."""
    words = text.split()
    if "..." in text or (len(words) < 2 and not text.endswith(".sh")):
        return False
    program = words[0].removeprefix(".venv/bin/") if words else ""
    return program in OURS | OTHERS or text.startswith(("docker/", ".venv/bin/"))


COMMANDS = sorted({command for path in DOCUMENTS for command in find_commands(path)}, key=str)


def rows(*kinds: type) -> list[Command]:
    return [command for command in COMMANDS if type(TABLE.get(command.key)) in kinds]


# ---- running them


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As typed with the environment activated."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace(".venv/bin/", "")],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def replaced(command: str, replace: dict[str, str], **values: object) -> str:
    for old, new in replace.items():
        command = command.replace(old, new.format(**values))
    return command


def ports(server: Server) -> dict[str, str]:
    """The tests' server where the commands look for one."""
    return {
        "HTTP_PORT": server.http_address.rpartition(":")[2],
        "GRPC_PORT": server.grpc_address.rpartition(":")[2],
    }


def test_every_command_has_a_row_and_every_row_a_command() -> None:
    texts = {command.key for command in COMMANDS}
    assert [str(command) for command in COMMANDS if command.key not in TABLE] == []
    assert [text for text in TABLE if text not in texts] == []


@pytest.mark.parametrize("command", rows(Run), ids=str)
def test_run_on_the_server(command: Command, main_job: MainJob, server: Server, tmp_path: Path) -> None:
    row = TABLE[command.key]
    assert isinstance(row, Run)
    values = {"http": f"http://{server.http_address}", "pictures": main_job.artifacts / "pictures", "own": tmp_path}
    done = run(replaced(command.text, row.replace, **values), ROOT, **ports(server))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("size", [(320, 240), (3000, 2200)])  # of three bytes' length too
def test_labels_by_plain_curl(shell: str, size: tuple[int, int], tiny_server: Server, tmp_path: Path) -> None:
    """The answer is JSON with the five most probable classes."""
    (text,) = [command.text for command in COMMANDS if "curl" in command.text and command.document == "README.md"]
    picture = tmp_path / "picture.jpeg"
    picture.write_bytes(jpeg(3, *size))
    address = f"http://{tiny_server.http_address}"
    places = {"artifacts/pictures/Bag/00030.jpeg": str(picture), "http://127.0.0.1:8000": address}
    done = run(f"{shell} -c {shlex.quote(replaced(text, places))}", ROOT)
    (output,) = json.loads(done.stdout)["outputs"]
    classes = [parse_label(each) for each in output["data"]]
    with Classifier(address) as classifier:
        assert classes == list(classifier.classify(picture).top)
    assert len(classes) == 5


def test_your_own_photographs(tmp_path: Path, server: Server) -> None:
    """The commands that make, publish and classify a user's own photographs, and a server on what they made."""
    for split, count in (("train", 8), ("test", 32)):  # 32 of the test images calibrate INT8
        for colour in ("blue", "red"):
            folder = tmp_path / "photos" / split / colour
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (64, 48 + number), colour).save(folder / f"{number}.jpg")
    network = NetworkConfig("alexnet_owt", classes=2, width=1 / 16)  # in the place of the published one
    trained = Checkpoint(network, AlexNet(network).state_dict(), ("a", "b"), (127.0,) * 3, (60.0,) * 3, "nothing")
    checkpoint.save(trained, tmp_path / "trained.pt")
    found = {command.key for command in rows(Photos)}
    for text in [text for text in TABLE if text in found]:
        row = TABLE[text]
        assert isinstance(row, Photos)
        done = run(replaced(text, row.replace), tmp_path, **ports(server))
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "photos.jsonl").read_text().splitlines()) == 80
    assert (tmp_path / "answers/index.html").is_file()
    with running_server(tmp_path / "artifacts/photos/model_repository") as running:
        running.check()
    shutil.rmtree(tmp_path / "artifacts")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_blocks(document: Path, main_job: MainJob, server: Server, tiny_repository: Path) -> None:
    """Run as they stand, with the tests' server and pictures; the wheel's examples import it by its name."""
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        code = block.replace("grpc://127.0.0.1:8001", f"grpc://{server.grpc_address}")
        code = code.replace("artifacts/pictures", str(main_job.artifacts / "pictures"))
        code = code.replace("artifacts/model_repository", str(tiny_repository))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        assert done.stdout


# ---- parsing them


class ParsedError(Exception):
    """A command line that its own parser takes."""


@pytest.mark.parametrize("command", rows(Parse, Covered), ids=str)
def test_parsed(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that another test runs are parsed too: with these words."""
    row = TABLE[command.key]
    if isinstance(row, Parse):
        print(f"not run ({row.reason}): {command}")
    words = shlex.split(command.key)
    program = words[0]
    if program == "alexnet-triton":
        parse(words[1:], monkeypatch)
    elif program == "torchrun":
        parse(words[words.index("alexnet_triton") + 1 :], monkeypatch)
    elif program == "alexnet-classify" or words[:2] == ["python", "client/classify.py"]:
        parse(["classify", *words[1 if program == "alexnet-classify" else 2 :]], monkeypatch)
    elif program in ("make", "time"):
        dry_run(words[words.index("make") + 1 :], tmp_path)
    elif words[:2] == ["docker", "compose"]:
        compose(words[2:])
    elif program == "locust":
        look_up(words[1:], words[:3])
    else:
        assert run(f"bash -n -c {shlex.quote(command.text)}", ROOT).returncode == 0
        assert all((ROOT / word).exists() for word in words if word.startswith("kubernetes/"))
        if "/" in words[0]:
            assert os.access(ROOT / words[0], os.X_OK)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sub-command's own parser, and no further."""
    original = Parser.parse_args

    def stop(self: Parser, *arguments: object, **named: object) -> None:
        original(self, *arguments, **named)  # type: ignore[call-overload]
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", stop)
    with pytest.raises(ParsedError):
        main(words)


def dry_run(words: list[str], artifacts: Path) -> None:
    environment = {name: "" for name in os.environ if name.startswith(("MAKE", "MFLAGS"))}
    done = run(shlex.join(["make", "--dry-run", *words, f"ARTIFACTS={artifacts}"]), ROOT, **environment)
    assert done.returncode == 0, done.stderr


def compose(words: list[str]) -> None:
    """The file in that profile; the sub-command's own options need a daemon, and are looked up in its help."""
    place = next(index for index, word in enumerate(words) if word in ("build", "up", "run", "down", "logs", "ps"))
    checked = run(
        shlex.join(["docker-compose", *words[:place], "config", "--quiet"]), ROOT, OWNER="1000:1000", SECRETS="/secrets"
    )
    assert checked.returncode == 0, checked.stderr
    look_up(words[place:], ["docker-compose", words[place]])


@cache
def help_of(*program: str) -> str:
    return run(shlex.join([*program, "--help"]), ROOT).stdout


def look_up(words: list[str], program: list[str]) -> None:
    """Each option is in the program's own help."""
    known = help_of(*program)
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert [option for option in options if not re.search(rf"(?<![\w-]){option}\b", known)] == []


@pytest.mark.parametrize("command", rows(Covered), ids=str)
def test_the_other_test_exists(command: Command) -> None:
    row = TABLE[command.key]
    assert isinstance(row, Covered)
    path, _, function = row.test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text()


# ---- the documents themselves


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_command_that_is_named_exists(document: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", document.read_text())
    named = [match[1] for match in map(MENTION.fullmatch, spans) if match and match[1]]
    assert [words for words in named if words.split()[0] not in SUBCOMMANDS] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_environment_is_named(document: Path) -> None:
    """`.venv/bin/` before a program of the environment, or the text has it activated."""
    bare = [command.text for command in find_commands(document) if command.text.split()[0] in OURS]
    assert not bare or ACTIVATE in document.read_text(), f"name .venv/bin/ or write `{ACTIVATE}`: {bare}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_linked_file_exists(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_nothing_in_docs_is_forgotten() -> None:
    """Every picture and file in docs/ is referred to, or lies beside one that is."""
    texts = [path.read_text() for path in DOCUMENTS]
    for path in (path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.suffix != ".md"):
        stem = path.name.split(".")[0]
        assert any(stem in text for text in texts), path


def test_the_first_readme_is_short() -> None:
    """But for the table that `gpu-check` puts in."""
    text = re.sub(r"(<!-- gpu figures -->).*(<!-- end)", r"\1\2", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.splitlines()) <= 140
