/* Makes every forward pass of ggml take at least SLOW_STEP_MS, by preloading: the same object in every server that is compared.
 *
 * The pass itself is computed as ever, and what is missing to the step time is slept: processors are as free meanwhile as they are
 * beside a model on a GPU. One pass is one step of decoding, whatever the number of rows, as it is on a GPU that is bound by reading
 * the weights. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef int (*compute_fn)(void *, void *);

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * t.tv_sec + t.tv_nsec / 1e6;
}

static compute_fn original(void) {
    static compute_fn found;
    if (!found) {
        void *library = dlopen("libggml-base.so.0", RTLD_LAZY | RTLD_NOLOAD);
        found = library ? (compute_fn)dlsym(library, "ggml_backend_sched_graph_compute_async") : NULL;
        if (!found) {
            fprintf(stderr, "slow_step: ggml is not where it is expected\n");
            abort();
        }
    }
    return found;
}

int ggml_backend_sched_graph_compute_async(void *sched, void *graph) {
    const char *wanted = getenv("SLOW_STEP_MS");
    double start_ms = now_ms();
    int status = original()(sched, graph);
    double left_ms = start_ms + (wanted ? atof(wanted) : 0.0) - now_ms();
    if (left_ms > 0) {
        struct timespec pause = {(time_t)(left_ms / 1e3), (long)(1e6 * (left_ms - 1e3 * (long)(left_ms / 1e3)))};
        nanosleep(&pause, NULL);
    }
    return status;
}
