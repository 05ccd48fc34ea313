"""The README beside each mobile target: what lies there and how an application loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ORT = """\
`{file}` opens with ONNX Runtime; a minimal build of it needs the operators in `required_operators.config`.
Android: com.microsoft.onnxruntime:onnxruntime-android, iOS: onnxruntime-objc. Inputs and outputs: docs/onnx-graph.md.

```kotlin
val env = OrtEnvironment.getEnvironment()
val session = env.createSession(path, OrtSession.SessionOptions())
val ids = OnnxTensor.createTensor(env, LongBuffer.wrap(tokens), longArrayOf(1, n))  // position_ids, logit_rows alike
val bias = OnnxTensor.createTensor(env, FloatBuffer.allocate(n * t), longArrayOf(1, 1, n, t))  // t: entries and n
val logits = session.run(inputs).get("logits").get().value as Array<FloatArray>  // present_*: past_* of the next step
```
```swift
let session = try ORTSession(env: ORTEnv(loggingLevel: .warning), modelPath: path, sessionOptions: nil)
let ids = try ORTValue(tensorData: NSMutableData(data: tokenData), elementType: .int64, shape: [1, n])
let outputs = try session.run(withInputs: inputs, outputNames: ["logits"], runOptions: nil)
```
"""

_STATIC = """\
`{file}` (weights in `{file}.data`) has the symbols n, m and W; a neural processor compiles one graph for each shape of
the ladder: n of {widths} (prompts: {chunk}), W of {windows}. The host keeps the cache: docs/npu.md.

```cpp
Ort::SessionOptions options;
for (auto [name, size] : {{std::pair{{"n", 4}}, {{"m", 4}}, {{"W", 256}}}})
  Ort::ThrowOnError(Ort::GetApi().AddFreeDimensionOverrideByName(options, name, size));
Ort::Session session(env, path, options);
auto outputs = session.Run(Ort::RunOptions{{}}, input_names, inputs, n_inputs, output_names, n_outputs);
// Write new_key_<l> and new_value_<l> into the columns that `place` named, for the tokens that were accepted only.
```
"""

_QNN = """\
`{file}` holds one EPContext node over `{binary}`, compiled for the Hexagon architecture v{htp_arch}: steps of {width}
rows, a window of {window} columns. Android: com.microsoft.onnxruntime:onnxruntime-android-qnn. The mask adds {hidden}
where nothing is to be seen; all else is as in docs/npu.md.

```kotlin
val options = OrtSession.SessionOptions().apply {{ addQnn(mapOf("backend_path" to "libQnnHtp.so")) }}
val session = OrtEnvironment.getEnvironment().createSession(path, options)
```
```cpp
options.AppendExecutionProvider("QNN", {{{{"backend_path", "libQnnHtp.so"}}}});
options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
Ort::Session session(env, path, options);
```
"""

_PTE = """\
`{file}` is an ExecuTorch program (XNNPACK) that keeps a cache of {context} entries. It takes tokens [1, n] and their
positions [n], n from {least} to {most}, and gives logits [n, vocab_size]; an earlier position overwrites what stood
there, so rejected tokens are taken back. Android: org.pytorch:executorch-android, iOS: the package executorch.

```kotlin
val module = Module.load(path)
val ids = EValue.from(Tensor.fromBlob(longArrayOf(1, 2, 3, 4), longArrayOf(1, 4)))
val logits = module.forward(ids, EValue.from(Tensor.fromBlob(longArrayOf(0, 1, 2, 3), longArrayOf(4))))[0]
    .toTensor().dataAsFloatArray
```
```swift
let module = Module(filePath: path)
let outputs = try module.forward([Tensor<Int64>([1, 2, 3, 4], shape: [1, 4]), Tensor<Int64>([0, 1, 2, 3])])
```
"""

_COREML = """\
`{package}` is a Core ML package for iOS 18 and macOS 15, written where it could not be run: try it before you ship it.
It keeps a cache of {context} entries in its state and takes {width} tokens [1, {width}] and their positions [{width}]
at a time; an earlier position overwrites what stood there. Spare rows: the places after the last token.

```swift
let model = try await MLModel(contentsOf: MLModel.compileModel(at: packageURL))
let state = model.makeState()
let ids = try MLMultiArray(shape: [1, {width}], dataType: .int32)
let positions = try MLMultiArray(shape: [{width}], dataType: .int32)
let input = try MLDictionaryFeatureProvider(dictionary: ["input_ids": ids, "positions": positions])
let logits = try model.prediction(from: input, using: state).featureValue(for: "logits")!.multiArrayValue!
```
"""

_TEXTS = {"ort": _ORT, "onnx-static": _STATIC, "qnn": _QNN, "pte": _PTE, "coreml": _COREML}


def readme(target: str, file: str, facts: Mapping[str, Any]) -> str:
    """The text of a target's README. facts: what config.json says."""
    head = (
        f"# {facts['model_id']}: {target}\n\ntokenizer.json is a Hugging Face tokenizer; config.json names the rest.\n"
    )
    return head + _TEXTS[target].format(file=file, **{key: str(value) for key, value in facts.items()})
