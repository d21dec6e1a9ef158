/* A librwkv whose arithmetic can be checked by hand, for tests of who calls it: the functions of rwkv.h, today's or
   with -DOLD those of April 2023 or with -DMIDDLE those of 2023-06 to 2024-07. Five tokens, a state of three numbers:

       state' = [state0 * 10 + token, evaluated tokens, threads * 100 + layers for a GPU]
       logits = [state'0, state'1, state'2, 1 if this came by a sequence, token]

   It stops with an assertion at token 4, refuses a model whose name ends in "x", and prints a lot. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rwkv_context {
    uint32_t threads;
    uint32_t layers;
};

static struct rwkv_context * load(const char * path, uint32_t threads, uint32_t layers) {
    printf("loading %s\n", path);
    fflush(stdout);
    if (path[strlen(path) - 1] == 'x') {
        fprintf(stderr, "rwkv.cpp: the name ends in x\n");
        return NULL;
    }
    struct rwkv_context * ctx = malloc(sizeof *ctx);
    ctx->threads = threads;
    ctx->layers = layers;
    return ctx;
}

static bool step(struct rwkv_context * ctx, uint32_t token, const float * in, float * out, float * logits, int many) {
    if (token == 4) {
        fprintf(stderr, "GGML_ASSERT: rwkv.cpp:1: token != 4\n");
        abort();
    }
    const float first = in ? in[0] : 7;
    const float count = in ? in[1] : 0;
    out[0] = first * 10 + (float) token;
    out[1] = count + 1;
    out[2] = (float) (ctx->threads * 100 + ctx->layers);
    if (logits) {
        memcpy(logits, out, 3 * sizeof(float));
        logits[3] = (float) many;
        logits[4] = (float) token;
    }
    return token != 3;
}

#ifdef OLD
struct rwkv_context * rwkv_init_from_file(const char * path, uint32_t threads) { return load(path, threads, 0); }
uint32_t rwkv_get_state_buffer_element_count(struct rwkv_context * ctx) { return 3; }
uint32_t rwkv_get_logits_buffer_element_count(struct rwkv_context * ctx) { return 5; }
bool rwkv_eval(struct rwkv_context * ctx, int32_t token, float * in, float * out, float * logits) {
    return step(ctx, (uint32_t) token, in, out, logits, 0);
}
#else
#ifdef MIDDLE
struct rwkv_context * rwkv_init_from_file(const char * path, uint32_t threads) { return load(path, threads, 0); }
bool rwkv_gpu_offload_layers(struct rwkv_context * ctx, uint32_t layers) {
    ctx->layers = layers;
    return true;
}
#else
struct rwkv_context * rwkv_init_from_file(const char * path, uint32_t threads, uint32_t layers) {
    return load(path, threads, layers);
}
#endif
size_t rwkv_get_state_len(struct rwkv_context * ctx) { return 3; }
size_t rwkv_get_logits_len(struct rwkv_context * ctx) { return 5; }
bool rwkv_eval(struct rwkv_context * ctx, uint32_t token, const float * in, float * out, float * logits) {
    return step(ctx, token, in, out, logits, 0);
}
bool rwkv_eval_sequence(
    struct rwkv_context * ctx, const uint32_t * tokens, size_t count, const float * in, float * out, float * logits
) {
    for (size_t i = 0; i < count; i++) {
        if (!step(ctx, tokens[i], i ? out : in, out, logits, 1)) {
            return false;
        }
    }
    return true;
}
#endif
