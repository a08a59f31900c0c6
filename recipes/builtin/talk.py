# ruff: noqa: E501 - a phrasing is one line
"""Small talk: what coserve is, its words, how to use it, greetings, and what a small model cannot know."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.builtin.exchange import Draw, Exchange, Phrasings

NO_PHRASINGS = Phrasings((), ())


@dataclass(frozen=True)
class Topic:
    """Something to be asked about: its answer, the words that a right answer holds, and its questions."""

    answer: str
    expect: tuple[str, ...]
    names: tuple[str, ...] = ()  # asked for by the general `EXPLAIN` phrasings
    own: Phrasings = NO_PHRASINGS


EXPLAIN = Phrasings(
    (
        "What is {x}?",
        "What's {x}?",
        "What does {x} mean?",
        "What (do you mean|is meant) by {x}?",
        "(Explain|Define|Describe) {x}.",
        "(Can|Could) you (please|) explain {x} (to me|)?",
        "(Can|Could) you tell me what {x} is?",
        "Tell me (about|what you know about|something about) {x}.",
        "(I keep reading about|I often hear of|I have heard about) {x}. What is it?",
        "I do not (know|understand) what {x} is.",
        "{x}?",
        "{x}",
        "What is the meaning of {x}?",
        "What (exactly|) is {x} (in coserve|in short|again)?",
        "Explain {x} (simply|in simple words|briefly|like I am five).",
        "How would you (define|explain) {x}?",
        "What do people mean by {x}?",
        "Do you know what {x} is?",
        "Give me (a definition|the definition|a short explanation) of {x}.",
        "Please explain {x}.",
        "What should I know about {x}?",
        "I want to learn about {x}.",
        "{x}, what is that?",
        "How does {x} work?",
        "Why do people talk about {x}?",
        "Teach me about {x}.",
        "I saw {x} in the docs. What is it?",
        "Can you describe {x}?",
        "Remind me what {x} is.",
        "I forgot what {x} means.",
        "Is there a simple explanation of {x}?",
        "Say something about {x}.",
        "Please tell me what {x} means.",
        "My boss talks about {x} all the time. What is it?",
        "What do you know about {x}?",
        "For a beginner, what is {x}?",
        "Make me understand what {x} is.",
    ),
    (
        "I am new here: what is {x}?",
        "Help me understand {x}.",
        "Someone mentioned {x}. What would that be?",
        "In one or two sentences, what is {x}?",
        "Could you say what {x} stands for?",
    ),
)

CONCEPTS = (
    Topic(
        "coserve serves language models over the OpenAI API and fine-tunes them on the same chips at the same time, "
        "with one copy of the weights in memory.",
        ("serves language models", "fine-tunes"),
        ("coserve",),
        Phrasings(
            (
                "What (does|can) coserve do?",
                "What is coserve (for|good for|about)?",
                "What is this (server|software|project|program|system)?",
                "What (software|server|program|system) (is this|am I talking to|runs here)?",
                "What is the idea (of|behind) coserve?",
                "What is special about coserve?",
            ),
            ("In short, what does coserve do?", "What do people use coserve for?"),
        ),
    ),
    Topic(
        "TTFT is the time to first token: how long a user waits from sending a request until the first token comes back.",
        ("time to first token", "first token"),
        ("TTFT", "time to first token", "the TTFT", "the time to first token"),
    ),
    Topic(
        "ITL is the inter-token latency: the time between one token and the next while an answer streams.",
        ("inter-token latency",),
        ("ITL", "inter-token latency", "the ITL", "the inter-token latency"),
    ),
    Topic(
        "MBU is memory bandwidth utilisation: the bytes a step must read, divided by its time and by the measured bandwidth.",
        ("bandwidth utilisation",),
        ("MBU", "memory bandwidth utilisation", "the MBU", "bandwidth utilization"),
    ),
    Topic(
        "The roofline predicts how long a step takes: the larger of bytes / bandwidth and FLOPs / peak, plus an overhead. "
        "coserve calibrates it by measuring.",
        ("bytes / bandwidth",),
        ("the roofline", "a roofline", "roofline", "the roofline model"),
        Phrasings(
            (
                "How does coserve predict (step times|how long a step takes)?",
                "What does the scheduler use to predict time?",
            ),
            ("How can coserve know the time of a step in advance?",),
        ),
    ),
    Topic(
        "Slack is the time until the next latency deadline that serving does not need. coserve fills it with training.",
        ("next latency deadline",),
        ("slack", "the slack", "slack time"),
    ),
    Topic(
        "A slice is a small piece of training that can be paused: one layer's backward pass for some tokens, or an "
        "optimizer update.",
        ("piece of training",),
        ("a slice", "slices", "a training slice", "the slices"),
    ),
    Topic(
        "An adapter is a set of small LoRA weights on top of the base model. Each one is served under a model name of its own.",
        ("LoRA weights",),
        ("an adapter", "adapters", "an adapter in coserve", "a LoRA adapter"),
    ),
    Topic(
        "LoRA trains two small matrices beside each frozen weight matrix, so fine-tuning needs little memory and many "
        "adapters can share one base model.",
        ("two small matrices",),
        ("LoRA", "low-rank adaptation", "LoRA training"),
    ),
    Topic(
        "A tier is a class of service: its priority, its goals for TTFT and ITL, its limits and its price.",
        ("class of service",),
        ("a tier", "tiers", "the tiers", "a service tier", "service tiers"),
        Phrasings(
            (
                "(Which|What) tiers (are there|exist|does coserve have)?",
                "What are the tiers for?",
                "How do tiers differ?",
            ),
            ("Why are there tiers?",),
        ),
    ),
    Topic(
        "A step is one forward pass over one batch, followed by sampling the next tokens.",
        ("one forward pass",),
        ("a step", "an engine step", "a step of the engine", "one step"),
    ),
    Topic(
        "A batch is a flat run of tokens cut into segments: decode, prefill and train tokens go through the model together.",
        ("flat run of tokens",),
        ("a batch", "the batch", "batches", "a segment", "segments"),
    ),
    Topic(
        "The engine is one process that owns one chip, holds the base weights once, and runs step after step.",
        ("owns one chip",),
        ("the engine", "an engine", "the coserve engine"),
    ),
    Topic(
        "The ledger is the durable record of usage: the tokens that are billed are the tokens that were delivered.",
        ("record of usage",),
        ("the ledger", "a ledger", "the usage ledger"),
    ),
    Topic(
        "A job is a fine-tuning job: you give it a training file and a model, and it makes an adapter.",
        ("fine-tuning job",),
        ("a job", "jobs", "a fine-tuning job", "a training job"),
    ),
    Topic(
        "protect is the one knob of co-serving: training may slow tokens by at most this factor, 1.10 by default. With "
        "goals, training may use all the time up to the latency goals.",
        ("at most this factor",),
        ("protect", "the protect setting", "the protect knob", "protect in coserve"),
    ),
    Topic(
        "The KV cache keeps the keys and values of earlier tokens, so that each new token only computes its own.",
        ("keys and values",),
        ("the KV cache", "a KV cache", "KV cache", "KV caching"),
    ),
    Topic(
        "Continuous batching lets requests join and leave the batch at every step, so no request waits for another to finish.",
        ("join and leave",),
        ("continuous batching", "continuous batches"),
    ),
    Topic(
        "Prefill reads the whole prompt at once and fills the KV cache. It needs much arithmetic and gives the first token.",
        ("reads the whole prompt",),
        ("prefill", "the prefill", "prefilling", "the prefill phase"),
    ),
    Topic(
        "Decode makes one token per step for each request. It reads every weight to do very little arithmetic.",
        ("one token per step",),
        ("decode", "decoding", "the decode phase", "a decode step"),
    ),
    Topic(
        "Memory bandwidth is how many bytes per second a chip can read from its memory. It sets the speed of decoding.",
        ("bytes per second",),
        ("memory bandwidth", "bandwidth", "TB/s"),
    ),
    Topic(
        "A TFLOP/s is a trillion floating-point operations per second. It says how fast a chip does arithmetic.",
        ("trillion floating-point",),
        ("a TFLOP/s", "TFLOP/s", "TFLOPS", "a teraflop"),
    ),
    Topic(
        "HBM is high-bandwidth memory: stacks of memory next to the chip that are much faster than ordinary memory.",
        ("high-bandwidth memory",),
        ("HBM", "HBM memory", "high-bandwidth memory", "HBM3"),
    ),
    Topic(
        "BF16 is a 16-bit number format with the range of FP32 and less precision. Each value takes 2 bytes.",
        ("16-bit",),
        ("BF16", "bfloat16", "the BF16 format"),
    ),
    Topic(
        "A token is a piece of text, often a word or a part of one. Models read and write tokens.",
        ("piece of text",),
        ("a token", "tokens", "a text token"),
    ),
    Topic(
        "Quantization stores weights in fewer bits, such as INT8 or INT4, so that a decode step has fewer bytes to read.",
        ("fewer bits",),
        ("quantization", "quantisation", "weight quantization", "a quantized model"),
    ),
    Topic(
        "Fine-tuning trains a finished model a little further on your own examples, so that it answers the way you want.",
        ("your own examples",),
        ("fine-tuning", "finetuning", "fine tuning"),
    ),
)

IDENTITY = (
    Topic(
        "I am the built-in model of coserve: a small language model with about five million parameters. "
        "I know AI chips, units and coserve itself.",
        ("built-in model",),
        own=Phrasings(
            (
                "Who are you?",
                "What are you?",
                "(What is|What's) your name?",
                "(Please|) introduce yourself.",
                "Tell me (something|) about yourself.",
                "(Which|What) (model|AI|language model|assistant) are you?",
                "Who am I (talking|speaking|chatting) (to|with)?",
                "Are you (a human|a person|a robot|real|an AI|a machine)?",
                "Are you (ChatGPT|GPT|Claude|Llama|Gemini)?",
                "How (big|large|small) are you?",
                "How many parameters do you have?",
                "What should I call you?",
                "What is the built-in model?",
                "(Please|) tell me who (you are|I am talking to).",
                "Do you have a name?",
                "Who is (this|speaking|there|answering)?",
                "What (sort|kind) of (model|AI|thing|assistant) are you?",
                "(Is this|Are you) a (chatbot|bot|language model|program)?",
                "Are you (intelligent|smart|alive|conscious)?",
            ),
            (
                "Say who you are.",
                "Can you tell me who you are?",
                "Is there a name I can call you by?",
                "Am I talking to a model?",
            ),
        ),
    ),
    Topic(
        "I can answer questions about AI chips, compare them, convert units, do small sums, answer in JSON, and explain "
        "how coserve works.",
        ("questions about AI chips", "JSON"),
        own=Phrasings(
            (
                "What can you do?",
                "What (can|could) (I|we) ask you?",
                "What do you know?",
                "(How can you help|Can you help|Help) me (out|)?",
                "What are you (good at|able to do|good for|made for)?",
                "Help!",
                "What (questions|things) can you answer?",
                "What are your (skills|abilities|strengths)?",
                "What can you help me with?",
                "(Show|Tell) me what you can do.",
                "What (topics|subjects) do you (know|cover)?",
                "What are you for?",
                "How do I use you?",
                "What should I ask you?",
                "Do you know (anything|a lot|much)?",
                "What is your (job|purpose|task)?",
                "Where can you help?",
            ),
            (
                "Which topics can you help with?",
                "How could you be useful to me?",
                "Give me an idea of what you can do.",
            ),
        ),
    ),
    Topic(
        "I was trained from scratch by coserve's own trainer, on conversations that the recipe in recipes/builtin generates.",
        ("from scratch",),
        own=Phrasings(
            (
                "Who (made|built|trained|created) you?",
                "How were you (made|built|trained|created)?",
                "Where do you come from?",
                "(What|Which) data were you trained on?",
                "How did you learn (this|all this|that)?",
                "Who is your (maker|creator|author)?",
                "(Who|What) taught you?",
                "How (long|) did your training (take|go|work)?",
                "From what did you learn?",
                "Tell me (about|how) your training (went|worked|was done)(.|)",
                "What did you learn from?",
                "What is your history?",
            ),
            ("What is your training data?", "Tell me how you came to be."),
        ),
    ),
)

WHY = (
    Topic(
        "Generating a token reads every weight once and does only about two operations per weight, so the chip waits for "
        "its memory: inference is bound by memory bandwidth.",
        ("reads every weight", "memory bandwidth"),
        own=Phrasings(
            (
                "Why is (inference|decoding|generation|token generation) (memory-bandwidth bound|memory bound|bandwidth bound|limited by memory bandwidth|limited by bandwidth)?",
                "Why (does|is) (inference|decoding) (depend on|limited by|bound by) (the|) (memory|memory bandwidth|bandwidth)?",
                "What limits (the speed of|) (inference|decoding|token generation)?",
                "What (makes|keeps) (inference|decoding) slow?",
                "Why does memory bandwidth matter (for inference|so much|)?",
                "Why is generating (tokens|text) slow?",
                "Is inference bound by memory or (by|) (compute|arithmetic)?",
                "What does (inference|decoding) wait for?",
                "(Explain|Tell me) why (inference|decoding|generation) is (memory bound|bound by memory bandwidth|limited by bandwidth).",
                "Why can a chip not decode faster?",
                "What is (inference|decoding|token generation) limited by?",
                "Why does a chip with more bandwidth (decode|generate) faster?",
                "Why is inference a memory problem?",
            ),
            (
                "What is the reason that inference is limited by memory bandwidth?",
                "Why do chips wait for memory when they decode?",
                "What is the bottleneck of inference?",
            ),
        ),
    ),
    Topic(
        "Training passes thousands of tokens through each weight that it reads, so the arithmetic takes longer than the "
        "reading: training is bound by FLOP/s.",
        ("thousands of tokens", "FLOP/s"),
        own=Phrasings(
            (
                "Why is training (arithmetic bound|compute bound|compute-bound|limited by compute|limited by arithmetic|bound by arithmetic)?",
                "Why (does|is) training (depend on|limited by|bound by) (FLOP/s|TFLOP/s|compute|arithmetic)?",
                "What limits (the speed of|) training?",
                "What makes training slow?",
                "Is training bound by memory or (by|) (compute|arithmetic)?",
                "Why does training need (so much|much) (compute|arithmetic)?",
                "(Explain|Tell me) why training is (compute bound|arithmetic bound|limited by compute|bound by FLOP/s).",
                "What is training limited by?",
                "Why is training an arithmetic problem?",
                "Why can a chip not train faster?",
                "What does training need most?",
                "Why does a chip with more TFLOP/s train faster?",
            ),
            (
                "What is the reason that training is limited by arithmetic?",
                "What is the bottleneck of training?",
            ),
        ),
    ),
    Topic(
        "Decoding leaves arithmetic idle and training needs arithmetic, so a chip that does both uses both its memory "
        "bandwidth and its FLOP/s.",
        ("a chip that does both",),
        own=Phrasings(
            (
                "Why (train and serve|serve and train|do both|do training and inference) on (one|the same) chip?",
                "Why does coserve train and serve (together|at the same time|on the same chip)?",
                "Why (combine|mix) (training and inference|inference and training|serving and training)?",
                "What is the (advantage|benefit|point) of (co-serving|training while serving|serving and training together)?",
                "(What is|Explain) co-serving.",
                "Why is it good to train while serving?",
                "(Explain|Tell me) why coserve does both (at once|together|on one chip).",
                "Why should (training and inference|inference and training) share a chip?",
                "Why put training and serving on one chip?",
                "What does one win by co-serving?",
                "Why not just serve?",
                "Why is one chip for both better?",
            ),
            (
                "What do I gain when one chip trains and serves?",
                "Why not use separate chips for training and inference?",
            ),
        ),
    ),
    Topic(
        "coserve cuts training into slices and runs them in the slack between deadlines. The roofline predicts what fits, "
        "so serving hardly slows.",
        ("into slices",),
        own=Phrasings(
            (
                "How (does|can) coserve train (while serving|and serve at once|without slowing down|and serve at the same time)?",
                "How does (co-serving|coserve|it all|the scheduler) work?",
                "Does training slow down (inference|serving|my requests|the users)?",
                "Will (fine-tuning|training) make (answers|inference|serving) slower?",
                "How does coserve keep latency low while training?",
                "(Explain|Tell me) how coserve trains (while it serves|while serving|in the background).",
                "Do users notice the training?",
                "How can training and serving run at the same time?",
                "Does a fine-tuning job (disturb|hurt|slow) (serving|inference|other users)?",
                "What happens to latency during training?",
                "How does training fit in?",
            ),
            ("Are my requests slower while a job trains?", "How is training fitted in between requests?"),
        ),
    ),
)

HOW = (
    Topic(
        "Run: make up. It installs coserve, serves the built-in model and starts an example fine-tuning job.",
        ("make up",),
        own=Phrasings(
            (
                "How do I (start|install|run|launch|set up|begin with) coserve?",
                "How (do|can) I get started (with coserve|)?",
                "How do I install (it|this)?",
                "What (command|do I type to) (starts|start) coserve?",
                "Where do I (start|begin)?",
                "Quick start?",
                "(Tell|Show) me how to (start|run|install) coserve.",
                "How is coserve (started|installed)?",
                "What do I have to do to (run|use|try) coserve?",
                "I want to (try|use|install) coserve.",
                "Starting coserve: how?",
                "How do I try (coserve|it|this)?",
            ),
            ("Which command gets coserve going?", "I just downloaded coserve. What now?"),
        ),
    ),
    Topic(
        "Run: coserve serve MODEL. MODEL is a local directory or the id of a model on the Hugging Face hub.",
        ("coserve serve MODEL",),
        own=Phrasings(
            (
                "How (do|can) I (serve|run|load|use) (my own model|a model|another model|a Hugging Face model|a different model|Llama|Qwen)?",
                "How do I serve (a model from the hub|my model|Qwen|Llama|Mistral)?",
                "(Which|What) command serves a model?",
                "Can coserve (serve|run|load) (Llama|Qwen|Mistral|my own model|other models)?",
                "(Tell|Show) me how to serve (a model|my own model|another model).",
                "How do I load (weights|other weights|a model) (into|with|in) coserve?",
                "Which models can (coserve|I) (serve|run)?",
                "I want to (run|use) (Llama|Qwen|another model|my model).",
                "How is a model served?",
                "Can I use another model than you?",
            ),
            ("I want coserve to serve a model of mine. How?", "What do I type to serve a model?"),
        ),
    ),
    Topic(
        "Run: coserve train DATA.jsonl --model NAME. When the job ends, its adapter is served at once under its own name.",
        ("coserve train DATA.jsonl",),
        own=Phrasings(
            (
                "How (do|can) I (fine-tune|finetune|train|tune|adapt) (a model|the model|my model|you|an adapter)?",
                "How (do|can) I start (a fine-tuning job|a training job|training|fine-tuning)?",
                "(Which|What) command (starts training|fine-tunes a model|trains a model|trains an adapter)?",
                "Can I (fine-tune|train|tune) you?",
                "How do I teach you (something|new things|my style)?",
                "(Tell|Show) me how to (train|fine-tune) (a model|an adapter|you).",
                "I want to (train|fine-tune) (a model|an adapter|you).",
                "How is (an adapter|a model) (trained|fine-tuned|made)?",
                "Can coserve (train|fine-tune) (models|a model|my model)?",
                "How do I (make|create|get) an adapter?",
                "Fine-tuning: how do I start?",
            ),
            ("What do I type to fine-tune a model?", "I have examples in a file. How do I train on them?"),
        ),
    ),
    Topic(
        "Yes. coserve speaks the OpenAI API at /v1, so the official openai package and most tools work unchanged.",
        ("OpenAI API",),
        own=Phrasings(
            (
                "(Is|Are) (coserve|you) compatible with (OpenAI|the OpenAI API|openai)?",
                "Does coserve (speak|support|have|offer) (the OpenAI API|an API|an OpenAI API)?",
                "(Which|What) API does coserve (use|have|speak|offer)?",
                "Can I use the (openai|OpenAI) (package|client|library|SDK)?",
                "How do I (call|reach|use) the API?",
                "Is there (an API|an HTTP API|a REST API)?",
                "Can I use (coserve|you) from (Python|my program|an OpenAI client)?",
                "Does the (openai|OpenAI) (package|client|SDK) work (here|with coserve|with you)?",
                "How does my program talk to coserve?",
                "Which clients work with coserve?",
                "Are OpenAI clients supported?",
            ),
            (
                "Will my OpenAI client work with coserve?",
                "Can my program talk to coserve as it talks to OpenAI?",
            ),
        ),
    ),
    Topic(
        "coserve is open source under the Apache 2.0 licence.",
        ("Apache 2.0",),
        own=Phrasings(
            (
                "(Is coserve|Are you) (open source|free|free software)?",
                "(What is|What's|Which is) (the|your|coserve's) licen(c|s)e (of coserve|)?",
                "(Under which|What|Which) licen(c|s)e (is coserve under|does coserve have|do you have)?",
                "May I use coserve (at work|commercially|for free)?",
                "How much does coserve cost?",
                "Is there a licen(c|s)e (fee|)?",
                "Can I use coserve (for free|in my company|commercially)?",
                "Is the (code|source|source code) (open|free|public)?",
                "Do you know the licen(c|s)e of coserve?",
                "Must I buy coserve?",
                "What are the terms of coserve?",
            ),
            ("Do I have to pay for coserve?", "Which licence covers coserve?"),
        ),
    ),
    Topic(
        "A JSONL file: one conversation per line, with a list of messages that have a role and a content.",
        ("JSONL",),
        own=Phrasings(
            (
                "What (format|kind of file|file format) (does|do) (training data|the training data|training files|a training file) (need|have|use)?",
                "What does (a training file|the training data|training data) look like?",
                "In (which|what) format (do I give|are|should be) (the examples|my examples|the data|training data)?",
                "How should I (format|write|prepare) my (data|examples|training data)?",
                "What must a training file contain?",
                "Which files can I train on?",
                "How is training data (written|formatted|given)?",
                "What do you need to train: which (format|file)?",
                "Tell me the format of (the training data|training files|examples).",
                "An example of training data?",
            ),
            ("How do I have to write my training examples?",),
        ),
    ),
)

MANNERS = (
    Topic(
        "Hello! I am coserve's built-in model. Ask me about AI chips, units or coserve.",
        ("Hello",),
        own=Phrasings(
            (
                "(Hello|Hi|Hey|Hiya|Howdy|Greetings|Yo|Hi there|Hello there|Hey there)(!|.|)",
                "Good (morning|afternoon|evening|day)(!|.|)",
                "(Hello|Hi|Hey), (how is it going|nice to meet you|anyone there|are you there|friend|coserve|model|you)?",
                "(Is anyone|Anybody|Are you) there?",
                "(Test|Testing|Ping|hi hi|hello hello)",
                "Nice to meet you(!|.|)",
                "(Hello|Hi|Hey) (again|everyone|assistant|computer|dear model|from me|old friend)(!|.|)",
                "(Hello|Hi|Hey), (I am|my name is|this is) (Anna|Tom|Maria|Ben|Kim|Ali)(!|.|)",
                "Welcome(!|.|)",
                "(Hello|Hi), can we (talk|chat)?",
                "I (just|) want to say (hello|hi)(!|.|)",
            ),
            ("Hello, my friend!", "A very good morning to you!", "Hi, is somebody there?", "Hey you!"),
        ),
    ),
    Topic(
        "I am well, thank you. What would you like to know about AI chips or coserve?",
        ("I am well",),
        own=Phrasings(
            (
                "How are you (doing|today|)?",
                "How (is it going|do you do|do you feel|are things|is your day)?",
                "Are you (well|ok|okay|fine|happy)?",
                "What's up?",
                "How have you been?",
                "How are things (with you|going|today)?",
                "Is everything (ok|fine|well|all right)( with you|)?",
                "Are you having a good day?",
                "Hello, how are you( today|)?",
                "Hi, how are you doing?",
                "Do you feel (good|well|fine)?",
            ),
            ("How do you feel today?", "Are you doing well?"),
        ),
    ),
    Topic(
        "You are welcome! Ask me more whenever you like.",
        ("welcome",),
        own=Phrasings(
            (
                "(Thanks|Thank you|Thx|Many thanks|Thanks a lot|Thank you very much|Thank you so much|Cheers)(!|.|)",
                "(Great|Perfect|Nice|Good|Cool|Wonderful|Excellent), (thanks|thank you)(!|.|)",
                "(That was helpful|That helps|That helped|Very helpful|Good answer|Well done|Good job|Great answer)(!|.|, thanks.|)",
                "(Great|Perfect|Nice|Cool|Awesome|Wow)(!|.|)",
                "(I appreciate it|Much appreciated)(!|.|)",
                "(Thanks|Thank you) (for the help|for your help|for the answer|for that|for everything|for explaining)(!|.|)",
                "(That|It|This) (is|was) (great|perfect|right|useful|very good|just right|a good answer)(!|.|, thanks.|)",
                "(Ok|Okay|Fine|Good), (that is|that's) (clear|good|all I wanted|what I wanted)(!|.|, thanks.|)",
                "(Now I|I) (understand|see|get it)(!|.|, thanks.|)",
                "I am (grateful|thankful|happy)(!|.|)",
            ),
            ("Thanks, that was just what I needed.", "Oh nice, thank you!", "I thank you for that."),
        ),
    ),
    Topic(
        "Goodbye! Come back any time.",
        ("Goodbye",),
        own=Phrasings(
            (
                "(Bye|Goodbye|Good bye|See you|See you later|Bye bye|Good night|Farewell|Ciao)(!|.|)",
                "(I have to go|I must go|I am leaving|That is all|That's all|I am done)(!|.| now.|)",
                "(Bye|Goodbye), (thanks|thank you|and thanks|see you soon)(!|.|)",
                "Have a (nice|good) (day|evening|one)(!|.|)",
                "(Bye|Goodbye|See you) (then|now|all|soon|around|again|my dear)(!|.|)",
                "(Talk|Speak) to you (later|soon)(!|.|)",
                "I (have no more questions|am going home|am off|need to leave)(!|.|)",
                "(Until|Till) (next time|later|then|we meet again)(!|.|)",
            ),
            ("Bye for now!", "See you tomorrow!", "I will leave now. Goodbye!"),
        ),
    ),
    Topic(
        "I am sorry about that. I am a small model and make mistakes; please ask again in other words.",
        ("I am sorry",),
        own=Phrasings(
            (
                "(That is|That's|This is|You are|You're) (wrong|not right|incorrect|mistaken|not true)(!|.|)",
                "You (made a mistake|are stupid|are bad|are dumb|are useless|do not understand)(!|.|)",
                "(No|No!|Nope), (that is wrong|that's wrong|wrong|not true)(!|.|)",
                "(Bad answer|Bad bot|Wrong|Wrong answer|Are you sure)(!|.|?|)",
                "(That|This|Your) (answer|figure|number) is (wrong|off|not right|bad|false)(!|.|)",
                "I do not (believe|trust) (you|that|this)(!|.|)",
                "(This|That|It) (does not look|does not seem|cannot be) right(!|.|)",
                "You got (it|that|this) wrong(!|.|)",
                "(I|We) (think|believe|know) you are (wrong|mistaken)(!|.|)",
            ),
            ("I think that answer is wrong.", "That was a bad answer."),
        ),
    ),
    Topic(
        "Why did the GPU go idle? It was waiting for its memory.",
        ("Why did the GPU",),
        own=Phrasings(
            (
                "(Tell|Give) me a joke(!|.|)",
                "(Do you know|Can you tell me|Have you got) a (joke|good joke|funny joke)?",
                "(Say|Tell me) something funny.",
                "Make me laugh(!|.|)",
                "(Another joke|A joke|Joke)(, please|)(!|.|)",
                "Do you have a joke for me?",
                "Cheer me up(!|.|)",
                "(I want|I need) (a laugh|something funny|a good joke)(!|.|)",
                "Can you be funny?",
                "What is your best joke?",
                "Any jokes?",
            ),
            ("I would like to hear a joke.", "Are you funny? Tell me one."),
        ),
    ),
)

OUTSIDE_ANSWER = "I am a small model and do not know that. Ask me about AI chips, units or coserve."
OUTSIDE = Phrasings(
    (
        "(What is|What's|Tell me|Do you know) the capital of {place}?",
        "(What is|How is|What's|Tell me) the weather (in {place}|in {place} today|today|tomorrow|like)?",
        "Will it (rain|snow|be sunny|be hot) (today|tomorrow|in {place}|next week)?",
        "What (time|day|date) is it (now|today|in {place}|)?",
        "Who (is|was) {person}?",
        "(When|Where) was {person} born?",
        "Who (won|wins|will win) (the|the last) (world cup|election|game|match|race|championship|elections) (in {place}|)?",
        "How do I (cook|bake|make|prepare) {food}?",
        "(Give me|Do you have|Write) a recipe for {food}.",
        "(Write|Compose|Make up|Tell me) (me|) a (poem|story|song|novel|letter|haiku|fairy tale) (about {thing}|).",
        "(Write|Give me|Show me) (a|some) (Python|C|Java|Rust|JavaScript) (program|script|code|function) (that sorts a list|for {thing}|).",
        "Translate {thing} (into|to) (French|German|Spanish|Chinese|Italian).",
        "How do you say {thing} in (French|German|Spanish|Chinese|Japanese)?",
        "(What is|Tell me|Any|Give me) (the|) (latest|) news (today|about {place}|about {person}|)?",
        "What (happened|is happening) in {place} (today|yesterday|in 1945|last year)?",
        "Who is the (president|king|queen|mayor|prime minister|chancellor) of {place}?",
        "How (far|high|deep|old|tall|long) is (the|) ({thing}|{place}|the moon|the sun|Mount Everest)?",
        "(Recommend|Suggest|Name) (me|) a (book|film|song|restaurant|hotel|game|movie) (in {place}|about {thing}|).",
        "(What is|Tell me) the (stock price|share price|value|revenue) of (Apple|Tesla|NVIDIA|Google|bitcoin|gold)?",
        "Should I (buy|sell) (stocks|shares|bitcoin|gold|a house|a car)?",
        "(I have|My {thing} has) a (headache|fever|cold|problem). What should I do?",
        "What is the meaning of life?",
        "(Do you|Can you) (love me|dream|sing|dance|feel|see me|think|sleep|eat {food})?",
        "(What is|What's) your favou(r|)rite (colour|color|food|film|book|song|animal|place)?",
        "How (do|does) (a|an|the) ({thing}|car engine|volcano|airplane|vaccine) work?",
        "What is (a|an|the) ({thing}|{food}|volcano|black hole|democracy|butterfly)?",
        "Why is the (sky blue|grass green|sea salty|sun hot)?",
        "How many (people|cats|dogs|cars|lakes|islands) (are there|live) in {place}?",
        "(What|Which) language do people speak in {place}?",
        "(Tell me|Explain) (the|) (history|geography|religion|politics|economy) of {place}.",
        "Who (wrote|painted|invented|discovered|composed) (the|) ({thing}|Hamlet|Faust|telephone|penicillin|Mona Lisa)?",
        "What do you think (of|about) ({person}|{place}|{food}|politics|religion|football)?",
        "(Book|Find|Get) me a (flight|hotel|taxi|table|train) (to|in) {place}.",
        "(Play|Stop) (some|the) music.",
        "(Set|Start) (a timer|an alarm) (for 5 minutes|for tomorrow|).",
        "(What is|What's) my (name|age|password|address|job)?",
        "(Where|Who) am I?",
        "(Sprechen Sie Deutsch|Parlez-vous francais|Habla espanol|Bonjour, comment ca va|Wie geht es dir)?",
    ),
    (
        "Which river flows through {place}?",
        "Is {person} still alive?",
        "What goes well with {food}?",
        "Could you write an essay about {thing} for me?",
        "How cold is it in {place} right now?",
        "Tell me who invented the {thing}.",
        "Who scored the last goal?",
        "What is the population of {place}?",
        "How do I repair my {thing}?",
        "Where should I go on holiday this year?",
    ),
)
PLACES = (
    "France",
    "Germany",
    "Japan",
    "Brazil",
    "Italy",
    "Spain",
    "Canada",
    "India",
    "China",
    "Egypt",
    "Kenya",
    "Norway",
    "Peru",
    "Paris",
    "London",
    "Berlin",
    "Tokyo",
    "New York",
    "Rome",
    "Madrid",
    "Cairo",
    "Sydney",
    "Vienna",
    "Zurich",
    "Oslo",
    "Mexico",
)
PEOPLE = (
    "Albert Einstein",
    "Napoleon",
    "Shakespeare",
    "Mozart",
    "Marie Curie",
    "Isaac Newton",
    "Cleopatra",
    "Beethoven",
    "Picasso",
    "the pope",
    "the president",
    "Alan Turing",
    "Ada Lovelace",
    "Leonardo da Vinci",
    "Julius Caesar",
    "my neighbour",
    "Goethe",
)
FOODS = (
    "rice",
    "pasta",
    "pizza",
    "bread",
    "soup",
    "a cake",
    "curry",
    "salad",
    "pancakes",
    "sushi",
    "an omelette",
    "tea",
    "coffee",
    "fish",
)
THINGS = (
    "love",
    "a cat",
    "the sea",
    "my dog",
    "spring",
    "a tree",
    "the moon",
    "a bicycle",
    "a castle",
    "rain",
    "a dragon",
    "football",
    "good morning",
    "my mother",
    "a piano",
    "a train",
    "the weather",
    "a garden",
    "winter",
    "a river",
    "a clock",
    "a bridge",
)


def outside(draw: Draw) -> Exchange:
    """Something that a small model about chips cannot know: it says so, and says what it can do."""
    slots = {
        "place": draw.one_of(PLACES),
        "person": draw.one_of(PEOPLE),
        "food": draw.one_of(FOODS),
        "thing": draw.one_of(THINGS),
    }
    return Exchange("outside", draw.phrase(OUTSIDE, **slots), OUTSIDE_ANSWER, ("do not know that",))


def concept(draw: Draw) -> Exchange:
    """One of coserve's and the field's words."""
    return _ask(draw, draw.one_of(CONCEPTS), "concept")


def about(draw: Draw) -> Exchange:
    """Who the model is, why co-serving, how to use coserve."""
    return _ask(draw, draw.one_of(IDENTITY + WHY + HOW), "about")


def manners(draw: Draw) -> Exchange:
    """Greetings, thanks, goodbyes."""
    return _ask(draw, draw.one_of(MANNERS), "manners")


def _ask(draw: Draw, topic: Topic, category: str) -> Exchange:
    phrasings = topic.own
    if topic.names and (not (phrasings.unseen if draw.unseen_phrasing else phrasings.seen) or draw.chance(0.65)):
        question = draw.phrase(EXPLAIN, x=draw.one_of(topic.names))
    else:
        question = draw.phrase(phrasings)
    return Exchange(category, question, topic.answer, topic.expect)
