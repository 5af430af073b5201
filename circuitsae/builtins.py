"""The built-in plugins as data, so that listing them imports nothing. `registry` registers these rows like a stranger's."""

from typing import Any, NamedTuple

from circuitsae.kinds import PluginKind


class Row(NamedTuple):
    """A built-in: where it lives, and what listings show without importing it."""

    kind: PluginKind
    name: str
    target: str
    summary: str
    extra: dict[str, Any] = {}


ROWS: tuple[Row, ...] = (
    # metrics
    Row("metrics", "logit-diff", "circuitsae.task.metrics:LogitDiff", "logit of the answer minus logit of the foil"),
    Row("metrics", "logit", "circuitsae.task.metrics:Logit", "logit of the answer"),
    Row("metrics", "log-prob", "circuitsae.task.metrics:LogProb", "log-probability of the answer"),
    Row("metrics", "probability", "circuitsae.task.metrics:Probability", "probability of the answer"),
    Row(
        "metrics",
        "divergence",
        "circuitsae.task.targets:Divergence",
        "Kullback-Leibler divergence from the clean distribution",
    ),
    Row("metrics", "loss", "circuitsae.task.targets:Loss", "cross-entropy of a continuation"),
    Row("metrics", "top-logits", "circuitsae.task.targets:TopLogits", "logits of the likeliest tokens, weighted"),
    Row("metrics", "feature", "circuitsae.task.targets:Feature", "pre-activation of one feature"),
    Row("metrics", "direction", "circuitsae.task.targets:Direction", "an activation along a direction"),
    # methods
    Row(
        "methods",
        "attribution-patching",
        "circuitsae.attribution.methods.attribution_patching:AttributionPatching",
        "gradient at the clean run times (baseline - value); 1 forward + 1 backward",
    ),
    # loaders
    Row(
        "loaders",
        "folder",
        "circuitsae.dictionaries.loaders.places:FolderLoader",
        "a folder on this machine in any known format, or one with such folders below it",
        {"order": -10},
    ),
    Row(
        "loaders",
        "hub",
        "circuitsae.dictionaries.loaders.places:HubLoader",
        "hf://ORG/NAME/PATH@REVISION, in any known format",
        {"order": -10},
    ),
    Row(
        "loaders",
        "saelens",
        "circuitsae.dictionaries.loaders.choice:SaelensLoader",
        "RELEASE/ID of SAELens' registry (extra saelens)",
        {"order": 10},
    ),
    Row(
        "loaders",
        "saelens-folder",
        "circuitsae.dictionaries.loaders.saelens_folder:SaelensFolder",
        "cfg.json + sae_weights.safetensors, SAELens' own format",
        {"order": 1},
    ),
    Row(
        "loaders",
        "gemma-scope",
        "circuitsae.dictionaries.loaders.gemma_scope:GemmaScope",
        "params.npz or params.safetensors, Gemma Scope's",
    ),
    Row(
        "loaders",
        "llama-scope",
        "circuitsae.dictionaries.loaders.llama_scope:LlamaScope",
        "hyperparams.json + checkpoints/final.safetensors, Llama Scope's",
    ),
    Row(
        "loaders",
        "checkpoints",
        "circuitsae.dictionaries.loaders.checkpoints:Checkpoints",
        "one .pt file each: Goodfire's, DeepSeek R1's, Qwen Scope's, GPT-2's hook_z; no code in the pickle is run",
    ),
    Row(
        "loaders",
        "dictionary-learning",
        "circuitsae.dictionaries.loaders.dictionary_learning:DictionaryLearning",
        "ae.pt + config.json, dictionary_learning's; no code in the pickle is run",
    ),
    Row(
        "loaders",
        "sparsify",
        "circuitsae.dictionaries.loaders.sparsify:Sparsify",
        "cfg.json + sae.safetensors, EleutherAI's sparsify",
    ),
    Row(
        "loaders",
        "transcoder-circuits",
        "circuitsae.dictionaries.loaders.transcoder_circuits:TranscoderCircuits",
        "GPT-2's transcoders, a .pt file each; no code in the pickle is run",
    ),
    Row(
        "loaders",
        "circuit-tracer",
        "circuitsae.dictionaries.loaders.circuit_tracer:CircuitTracer",
        "config.yaml + safetensors, circuit-tracer's sets, per layer and across layers",
        {"order": 2},
    ),
    Row(
        "methods",
        "ablation",
        "circuitsae.attribution.methods.ablation:Ablation",
        "really ablates every node; 1 forward a node, batched",
    ),
    Row(
        "methods",
        "auto",
        "circuitsae.attribution.methods.auto:Auto",
        "recommended: predicts all, ablates the strongest; 10 forward + backward at most",
    ),
    Row(
        "methods",
        "integrated-gradients",
        "circuitsae.attribution.methods.integrated_gradients:IntegratedGradients",
        "gradient averaged from clean to baseline, one site at a time; steps forward + backward a site",
    ),
    Row(
        "methods",
        "relp",
        "circuitsae.attribution.methods.relp:RelevancePatching",
        "relevance patching: layer-wise relevance propagation's gradients; 2 forward + 1 backward",
    ),
    Row(
        "methods",
        "atp-star",
        "circuitsae.attribution.methods.atp_star:AtPStar",
        "GradDrop, and exact softmax at queries and keys; 2 forward + (1 + layers) backward",
    ),
    Row(
        "methods",
        "gim",
        "circuitsae.attribution.methods.gim:GradientInteraction",
        "gradients that allow for interactions; 2 forward + 1 backward",
    ),
    # pruners
    Row("pruners", "top-k", "circuitsae.graph.prune:TopK", "the max_nodes features of largest |effect|"),
    Row("pruners", "threshold", "circuitsae.graph.prune:Threshold", "nodes of at least node_threshold |effect|"),
    Row(
        "pruners", "influence", "circuitsae.graph.prune:Influence", "nodes and edges that hold a share of the influence"
    ),
    # groupings
    Row(
        "groupings",
        "profiles",
        "circuitsae.graph.grouping:Profiles",
        "features that the same things reach and that reach the same",
    ),
    # exporters
    Row("exporters", "json", "circuitsae.export.formats:as_json", "circuitsae's own, read back", {"suffix": ".json"}),
    Row(
        "exporters",
        "node-link",
        "circuitsae.export.formats:as_node_link",
        "networkx's node-link JSON",
        {"suffix": ".node-link.json"},
    ),
    Row("exporters", "graphml", "circuitsae.export.formats:as_graphml", "Gephi, yEd, igraph", {"suffix": ".graphml"}),
    Row("exporters", "gexf", "circuitsae.export.formats:as_gexf", "Gephi", {"suffix": ".gexf"}),
    Row("exporters", "dot", "circuitsae.export.formats:as_dot", "Graphviz", {"suffix": ".dot"}),
    Row("exporters", "csv", "circuitsae.export.formats:as_csv", "tables of nodes and of edges", {"suffix": ".csv"}),
    Row(
        "exporters", "html", "circuitsae.export.formats:as_html", "an interactive page of its own", {"suffix": ".html"}
    ),
    Row("exporters", "svg", "circuitsae.export.drawings:as_svg", "a picture of the strongest", {"suffix": ".svg"}),
    Row("exporters", "png", "circuitsae.export.drawings:as_png", "the picture, by matplotlib", {"suffix": ".png"}),
    Row("exporters", "pdf", "circuitsae.export.drawings:as_pdf", "the picture, by matplotlib", {"suffix": ".pdf"}),
    Row(
        "exporters",
        "circuit-tracer",
        "circuitsae.export.circuit_tracer:as_circuit_tracer",
        "circuit-tracer's viewer and Neuronpedia, read back",
        {"suffix": ".circuit-tracer.json"},
    ),
    Row(
        "exporters",
        "cytoscape",
        "circuitsae.export.tables:as_cytoscape",
        "Cytoscape.js and Cytoscape, read back",
        {"suffix": ".cyjs"},
    ),
    # labels
    Row(
        "labels",
        "store",
        "circuitsae.labels.parquet:ParquetLabels",
        "a Parquet file, as 'circuitsae describe' writes it",
        {"suffixes": (".parquet",)},
    ),
    Row(
        "labels",
        "table",
        "circuitsae.labels.tables:TableLabels",
        "a table of features and labels: CSV, TSV, JSON, JSON Lines",
        {"suffixes": (".csv", ".tsv", ".json", ".jsonl")},
    ),
    Row("labels", "neuronpedia", "circuitsae.labels.neuronpedia:NeuronpediaLabels", "Neuronpedia's web API"),
    Row(
        "labels",
        "neuronpedia-export",
        "circuitsae.labels.neuronpedia:NeuronpediaExport",
        "files that Neuronpedia exports",
        {"suffixes": (".jsonl.gz",)},
    ),
    # presets
    Row(
        "presets",
        "smollm2",
        "circuitsae.presets.shipped:SMOLLM2",
        "SmolLM2-135M-Instruct with residual SAEs at six layers",
    ),
    Row(
        "presets",
        "smollm2-neurons",
        "circuitsae.presets.shipped:SMOLLM2_NEURONS",
        "SmolLM2-135M-Instruct with its MLPs' neurons in place of dictionaries",
    ),
    Row(
        "presets", "tiny", "circuitsae.presets.shipped:TINY", "a four-layer model of templated English, SAEs everywhere"
    ),
    Row(
        "presets", "tiny-transcoders", "circuitsae.presets.shipped:TINY_TRANSCODERS", "the same model with transcoders"
    ),
    Row("presets", "tiny-neurons", "circuitsae.presets.shipped:TINY_NEURONS", "the same model with its MLPs' neurons"),
    Row("presets", "gpt2-small", "circuitsae.presets.shipped:GPT2_SMALL", "GPT-2 small with residual SAEs everywhere"),
    Row(
        "presets",
        "gpt2-small-transcoders",
        "circuitsae.presets.shipped:GPT2_SMALL_TRANSCODERS",
        "GPT-2 small with a transcoder for every MLP",
    ),
    Row(
        "presets",
        "pythia-70m-deduped",
        "circuitsae.presets.shipped:PYTHIA_70M_DEDUPED",
        "Pythia-70M with SAEs at the sites of feature-circuits",
    ),
    Row(
        "presets",
        "gemma-2-2b",
        "circuitsae.presets.shipped:GEMMA_2_2B",
        "Gemma 2 2B with Gemma Scope's canonical residual SAEs",
    ),
    Row(
        "presets",
        "gemma-2-2b-transcoders",
        "circuitsae.presets.shipped:GEMMA_2_2B_TRANSCODERS",
        "Gemma 2 2B with Gemma Scope's transcoders",
    ),
)
