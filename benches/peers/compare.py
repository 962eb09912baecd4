#!/usr/bin/env python3
"""Compare laud with ONNX Runtime and OpenVINO: static networks, same type, threads and machine.

Each engine lives in its own process and only one runs at a time. Within a column (model, batch,
threads) the engines take turns, round by round, in an order that rotates, so that a change in the
machine's load falls on all of them. A turn warms up, then times single inferences; its median is the
round's value. A column reports the median and MAD over rounds, the fastest single inference, and the
median over rounds of each engine's time relative to a reference engine's in the same round.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import export

REFERENCE = {"f32": "onnxruntime", "bf16": "openvino", "int8": "openvino"}
TOLERANCE = {"f32": 1e-3, "bf16": 5e-2, "int8": 5e-2}
SETTLE = 0.02  # seconds between turns: an engine's idle threads may spin on for a moment


def open_onnxruntime(path, batch, threads, dtype):
    if dtype == "bf16":
        raise ValueError("ONNX Runtime has no bf16 on the CPU")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name("batch", batch)
    if dtype == "int8":
        check_onnxruntime(path, options)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input": image})[0]


def check_onnxruntime(path, options):
    """Refuse a network whose convolutions are not all in int8 once it is optimised."""
    import onnxruntime as ort

    options.log_severity_level = 3  # else it warns that the optimised file is for this processor
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        operators = [node.op_type for node in export.onnx.load(options.optimized_model_filepath).graph.node]
    options.optimized_model_filepath = ""
    if "QLinearConv" not in operators or {"Conv", "FusedConv"} & set(operators):
        raise ValueError("ONNX Runtime left convolutions in f32")


def open_openvino(path, batch, threads, dtype):
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape([batch, 3, export.SIDE, export.SIDE])
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    if dtype != "int8":  # int8 is in the network; what is left in floating point runs as OpenVINO prefers
        config["INFERENCE_PRECISION_HINT"] = dtype
    compiled = core.compile_model(model, "CPU", config)
    if dtype == "int8":
        check_openvino(compiled)
    request = compiled.create_infer_request()

    def infer(image):
        request.infer({0: image}, share_inputs=True)
        return request.get_output_tensor().data.copy()

    return infer


def check_openvino(compiled):
    """Refuse a network whose convolutions are not all computed by int8 kernels."""
    kernels = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: node.rt_info[key].astype(str) for key in ("layerType", "primitiveType") if key in node.rt_info}
        if info.get("layerType") == "Convolution":
            kernels.append(info["primitiveType"])
    if not kernels or not all(kernel.lower().endswith("i8") for kernel in kernels):
        raise ValueError(f"OpenVINO left convolutions in floating point: {', '.join(sorted(set(kernels)))}")


PEERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def serve(pipe, engine, path, batch, threads, dtype):
    """A peer's process: answers (iterations, warm_up) with times in ms, and None by leaving."""
    try:
        infer = PEERS[engine](path, batch, threads, dtype)
        image = np.random.default_rng(1).standard_normal((batch, 3, export.SIDE, export.SIDE), dtype=np.float32)
        pipe.send(infer(image))
        while request := pipe.recv():
            iterations, warm_up = request
            for _ in range(warm_up):
                infer(image)
            times = []
            for _ in range(iterations):
                start = time.perf_counter()
                infer(image)
                times.append(1e3 * (time.perf_counter() - start))
            pipe.send(times)
    except Exception as error:
        pipe.send(error)


class Peer:
    """An engine in a process of its own, holding one network."""

    def __init__(self, engine, path, batch, threads, dtype):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, engine, str(path), batch, threads, dtype)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.logits = self.answer()

    def answer(self):
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def turn(self, iterations, warm_up):
        """(median, minimum) in ms."""
        self.pipe.send((iterations, warm_up))
        times = self.answer()
        return statistics.median(times), min(times)

    def close(self):
        self.pipe.send(None)
        self.process.join()


class Laud:
    """Our binary, started anew for each turn; it times itself, so starting is not counted."""

    def __init__(self, binary, model, batch, threads, dtype):
        self.command = [str(binary), "bench", "--model", model, "--batch", str(batch)]
        self.command += ["--threads", str(threads), "--dtype", dtype, "--json"]

    def turn(self, iterations, warm_up):
        command = [*self.command, "--iterations", str(iterations), "--warm-up", str(warm_up)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise RuntimeError(f"exit status {done.returncode}: {reason}")
        latency = json.loads(done.stdout)["latency_ms"]
        return latency["median"], latency.get("min", latency["median"])

    def close(self):
        pass


def quantise(source, target, engine):
    """Write the network `source` in int8, in the form in which `engine` runs it fastest.

    Weights are signed and per channel. Activations are unsigned with zero points for ONNX Runtime, which
    leaves convolutions of signed ones in f32. OpenVINO is given those that can be negative as signed
    without zero points.
    """
    import onnxruntime.quantization as quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        """Random images and few: the ranges decide what comes out, not how long it takes."""

        def __init__(self):
            shape = (4, 1, 3, export.SIDE, export.SIDE)
            self.images = iter(np.random.default_rng(2).standard_normal(shape, dtype=np.float32))

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"input": image}

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared, done = Path(folder) / "prepared.onnx", Path(folder) / "done.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        extra = {}
        if engine == "openvino":
            signed = ["input"]
            for node in export.onnx.load(prepared).graph.node:
                if node.op_type in ("Conv", "Gemm", "Add"):
                    signed += node.output
            kind = {"quant_type": quantization.QuantType.QInt8, "symmetric": True}
            extra["TensorQuantOverrides"] = {name: [kind] for name in signed}
        quantization.quantize_static(
            prepared,
            done,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            extra_options=extra,
        )
        done.rename(target)


def network(args, model, engine):
    """The file that `engine` reads, made if missing."""
    path = export.path_of(args.models_dir, model, 0)
    if not path.exists():
        args.models_dir.mkdir(parents=True, exist_ok=True)
        export.onnx.save(export.build(model)[0], path)
    if args.dtype != "int8":
        return path
    quantised = path.with_name(f"{model}_int8_{engine}.onnx")
    if not quantised.exists():
        quantise(path, quantised, engine)
    return quantised


def open_engines(args, model, batch, threads):
    engines = {}
    paths = {name: network(args, model, name) for name in args.engines}
    for name, path in paths.items():
        engines[name] = Peer(name, path, batch, threads, args.dtype)
    outputs = [peer.logits for peer in engines.values()]
    for other in outputs[1:]:
        error = np.abs(other - outputs[0]).max() / np.abs(outputs[0]).max()
        if not error < TOLERANCE[args.dtype]:
            raise ValueError(f"{model}: the engines' outputs differ by {error:.1e} of the largest")
    if args.laud:
        engines["laud"] = Laud(args.laud, model, batch, threads, args.dtype)
        try:
            engines["laud"].turn(1, 0)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            print(f"laud skipped for {model}, batch {batch}: {error}", file=sys.stderr)
            del engines["laud"]
    return engines


def foreign_seconds():
    """Processor seconds spent so far by everything but this process and its finished children."""
    user, nice, system, _, _, irq, soft_irq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def measure(args, model, batch, threads):
    """One column: the engines in turn, `rounds` times."""
    start, foreign = time.monotonic(), foreign_seconds()
    engines = open_engines(args, model, batch, threads)
    names = list(engines)
    try:
        slowest = max(engine.turn(1, 1)[0] for engine in engines.values())
        iterations = args.iterations or min(20, max(1, round(args.turn_ms / slowest)))
        rounds = []
        for index in range(args.rounds):
            order = names[index % len(names) :] + names[: index % len(names)]
            turns = {}
            for name in order:
                time.sleep(SETTLE)
                turns[name] = engines[name].turn(iterations, args.warm_up)
            rounds.append(turns)
    finally:
        for engine in engines.values():
            engine.close()
    column = {"model": model, "batch": batch, "threads": threads, "iterations": iterations, "engines": {}}
    available = os.cpu_count() * (time.monotonic() - start)
    column["foreign_load"] = max(0.0, foreign_seconds() - foreign) / available
    for name in names:
        medians = [turns[name][0] for turns in rounds]
        middle = statistics.median(medians)
        result = {
            "median_ms": middle,
            "mad_ms": statistics.median(abs(value - middle) for value in medians),
            "min_ms": min(turns[name][1] for turns in rounds),
            "rounds_ms": medians,
        }
        reference = REFERENCE[args.dtype]
        if reference in names and name != reference:
            result[f"ratio_to_{reference}"] = statistics.median(
                turns[name][0] / turns[reference][0] for turns in rounds
            )
        column["engines"][name] = result
    return column


def ratio(result):
    """Time relative to the reference, of all engines but that one."""
    return next((value for key, value in result.items() if key.startswith("ratio_to_")), None)


def line(column):
    cells = []
    for name, result in column["engines"].items():
        cell = f"{name} {result['median_ms']:.2f} ±{result['mad_ms']:.2f} (min {result['min_ms']:.2f})"
        if ratio(result):
            cell += f" ×{ratio(result):.3f}"
        cells.append(cell)
    title = f"{column['model']} b{column['batch']} t{column['threads']}"
    return f"{title:22} foreign load {column['foreign_load']:4.0%}  " + "  ".join(cells)


def device():
    """The processor's name with its family and model, since virtual machines often shorten the name."""
    fields = {}
    for text in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        key, _, value = text.partition(":")
        fields[key.strip()] = value.strip()
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")
    present = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return {"name": name, "cores": os.cpu_count(), "features": [flag for flag in wanted if flag in present]}


def laud_version(binary):
    try:
        done = subprocess.run([str(binary), "--version"], stdout=subprocess.PIPE, text=True)
        return done.stdout.strip().removeprefix("laud ") or "unknown"
    except OSError:
        return "unknown"


def markdown(report):
    machine, reference = report["device"], REFERENCE[report["dtype"]]
    lines = [
        f"{machine['name']}, {machine['cores']} cores, {' '.join(machine['features'])}; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f"; {report['dtype']}, {report['rounds']} interleaved rounds. "
        "Milliseconds per batch: median ± MAD over rounds (fastest inference); × is the time relative to "
        f"{reference}, median of the per-round ratios; foreign load is the share of all processor time "
        "that other programs used meanwhile.",
        "",
    ]
    names = list(dict.fromkeys(name for column in report["columns"] for name in column["engines"]))
    header = ["model", "batch", "threads", "foreign load", *names]
    header += [f"{name} ×" for name in names if name != reference]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for column in report["columns"]:
        results = [column["engines"].get(name) for name in names]
        cells = [column["model"], str(column["batch"]), str(column["threads"])]
        cells.append(f"{column['foreign_load']:.0%}")
        for result in results:
            text = result and f"{result['median_ms']:.2f} ± {result['mad_ms']:.2f} ({result['min_ms']:.2f})"
            cells.append(text or "")
        for name, result in zip(names, results):
            if name != reference:
                cells.append(f"{ratio(result):.3f}" if result and ratio(result) else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def names(choices):
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"unknown {name!r}, expected some of {', '.join(choices)}")
        return chosen

    return parse


def numbers(text):
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError("expected positive numbers")
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laud", type=Path, help="our binary; without it only the peers run")
    parser.add_argument("--models", type=names(export.MODELS), default=list(export.MODELS))
    parser.add_argument("--engines", type=names(PEERS), help="peers to run [default: those that have the type]")
    parser.add_argument("--dtype", choices=list(REFERENCE), default="f32", help="what is multiplied")
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=numbers, default=[os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=0, help="per turn; 0 chooses from --turn-ms")
    parser.add_argument("--turn-ms", type=float, default=150, help="time aimed at for the slowest engine's turn")
    parser.add_argument("--warm-up", type=int, default=2, help="untimed inferences at the head of each turn")
    parser.add_argument("--models-dir", type=Path, default=Path("peer-models"), help="ONNX files; made if missing")
    parser.add_argument("--out", type=Path, default=Path("peers"), help="stem of the .json and .md reports")
    args = parser.parse_args()
    args.engines = args.engines or (["openvino"] if args.dtype == "bf16" else list(PEERS))

    if args.laud and not args.laud.exists():
        print(f"laud skipped: {args.laud} does not exist", file=sys.stderr)
        args.laud = None
    report = {
        "device": device(),
        "versions": {name: version(name) for name in args.engines},
        "dtype": args.dtype,
        "rounds": args.rounds,
        "columns": [],
    }
    if args.laud:
        report["versions"]["laud"] = laud_version(args.laud)
    for threads in args.threads:
        for batch in args.batches:
            for model in args.models:
                report["columns"].append(measure(args, model, batch, threads))
                print(line(report["columns"][-1]), flush=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(report))
    print("\n" + markdown(report))


if __name__ == "__main__":
    main()
