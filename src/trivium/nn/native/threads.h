/* A pool of threads for jobs of some microseconds. */
/* Work is cut into small chunks that whoever is free takes. The caller waits only for chunks that
 * somebody has taken: a helper that another process keeps off its core holds nobody up. Helpers
 * spin for some microseconds after a job, then sleep. */

typedef void (*Job)(void *, int first, int last);

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    atomic_int generation, sleepers;
    /* Two words decide a chunk: the ticket holds generation (high half) and next index (low half). */
    _Atomic uint64_t ticket;
    atomic_int done;
    Job job;
    void *context;
    int count, grain, helpers;
    atomic_int wanted; /* helpers that may work; the others sleep */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void take_chunks(uint32_t generation) {
    for (;;) {
        uint64_t seen = atomic_load(&pool.ticket);
        if ((uint32_t)(seen >> 32) != generation) return;
        int first = (int)(uint32_t)seen;
        /* count and grain belong to this generation as long as the exchange below succeeds */
        int count = pool.count, grain = pool.grain;
        if (first >= count) return;
        int last = first + grain < count ? first + grain : count;
        if (!atomic_compare_exchange_weak(&pool.ticket, &seen, ((uint64_t)generation << 32) | (uint32_t)last))
            continue;
        pool.job(pool.context, first, last);
        atomic_fetch_add(&pool.done, last - first);
    }
}

static void *helper(void *number) {
    const int own = (int)(intptr_t)number;
    int known = 0;
    for (;;) {
        int spins = 0;
        while (atomic_load(&pool.generation) == known) {
            if (++spins < 4000 && own < atomic_load(&pool.wanted)) { RELAX(); continue; }
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.generation) == known) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        known = atomic_load(&pool.generation);
        if (own < atomic_load(&pool.wanted)) take_chunks((uint32_t)known);
    }
    return NULL;
}

/* Let `threads` threads work, the caller among them. */
void trivium_threads(int threads) {
    while (pool.helpers < threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)pool.helpers)) break;
        pthread_detach(thread);
        pool.helpers++;
    }
    atomic_store(&pool.wanted, threads - 1);
}

/* A child of fork() has no helpers. */
void trivium_forked(void) {
    pool.helpers = 0;
    atomic_store(&pool.wanted, 0);
    atomic_store(&pool.sleepers, 0);
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
}

static void parallel(Job job, void *context, int count, int grain) {
    /* One job at a time: a second thread of the program does its own alone. */
    if (atomic_load(&pool.wanted) == 0 || count <= grain || pthread_mutex_trylock(&pool.busy)) {
        job(context, 0, count);
        return;
    }
    uint32_t generation = (uint32_t)atomic_load(&pool.generation) + 1;
    /* Close the old ticket before its job is replaced, so that a late helper takes nothing. */
    atomic_store(&pool.ticket, ((uint64_t)generation << 32) | 0x7fffffffu);
    pool.job = job; pool.context = context; pool.count = count; pool.grain = grain;
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, (uint64_t)generation << 32);
    atomic_store(&pool.generation, (int)generation);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    take_chunks(generation);
    for (int spins = 0; atomic_load(&pool.done) < count; spins++)
        if (spins < 2000) RELAX(); else sched_yield();
    pthread_mutex_unlock(&pool.busy);
}
