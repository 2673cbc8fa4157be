// Scheduler of shim.h: one fibre for each thread of the resident blocks.
#include "shim.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

namespace shim {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024;

struct Block {
  dim3 index;
  unsigned arrived = 0;
  int or_so_far = 0, or_result = 0;
  // Two alternating sets: a lane can be one operation ahead of the slowest.
  std::vector<uint32_t> slots[2];
  std::vector<unsigned> warp_arrived;
};

enum class State { RUNNABLE, AT_BARRIER, AT_WARP, DONE };

// Stack of a loop that runs one thread after the other. makecontext creates it; _longjmp leaves and
// enters it without a system call. It is kept for all launches.
struct Stack {
  std::unique_ptr<char[]> bytes{new char[STACK_BYTES]};
  jmp_buf where;
  bool is_begun = false;
};

struct Fibre {
  Stack* stack = nullptr;
  dim3 thread;
  unsigned rank = 0;
  Block* block = nullptr;
  State state = State::RUNNABLE;
  int line = 0;
  unsigned warp_operations = 0;
};

struct Launch {
  const Request* request;
  unsigned threads;  // of a block
  uint64_t random;
  bool shuffles;
  jmp_buf scheduler;
  Fibre* current = nullptr;
  std::string error;
};

Launch* active = nullptr;

uint64_t draw() {  // xorshift64*
  uint64_t& x = active->random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  return x * 0x2545F4914F6CDD1DULL;
}

void pause() {
  if (_setjmp(active->current->stack->where) == 0) _longjmp(active->scheduler, 1);
}

void on_signal(int signal) {
  fail(signal == SIGSEGV || signal == SIGBUS ? "access outside an array" : "undefined behaviour");
}

void run_threads() {
  for (;;) {
    active->request->body(active->request->arguments);
    active->current->state = State::DONE;
    pause();
  }
}

void resume(Fibre& fibre) {
  active->current = &fibre;
  thread_index = fibre.thread;
  block_index = fibre.block->index;
  if (_setjmp(active->scheduler) != 0) return;
  Stack& stack = *fibre.stack;
  if (stack.is_begun) _longjmp(stack.where, 1);
  stack.is_begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack.bytes.get();
  context.uc_stack.ss_size = STACK_BYTES;
  context.uc_link = nullptr;
  makecontext(&context, run_threads, 0);
  setcontext(&context);
}

bool stand_at_one_line(Fibre* first, unsigned count, const char* what) {
  for (unsigned i = 0; i < count; ++i) {
    if (first[i].line != first[0].line) {
      active->error = what;
      return false;
    }
    first[i].state = State::RUNNABLE;
  }
  return true;
}

// Releases the barriers and warp operations that all threads have reached.
bool release(std::vector<Fibre>& fibres, std::vector<Block>& blocks) {
  bool is_released = false;
  for (Block& block : blocks) {
    Fibre* first = &fibres[static_cast<size_t>(&block - blocks.data()) * active->threads];
    if (block.arrived == active->threads) {
      if (!stand_at_one_line(first, active->threads,
                             "threads of one block stand at different barriers")) {
        return false;
      }
      block.arrived = 0;
      block.or_result = block.or_so_far;
      block.or_so_far = 0;
      is_released = true;
    }
    for (unsigned warp = 0; warp < block.warp_arrived.size(); ++warp) {
      if (block.warp_arrived[warp] != LANES) continue;
      if (!stand_at_one_line(first + warp * LANES, LANES,
                             "lanes of one warp stand at different operations")) {
        return false;
      }
      block.warp_arrived[warp] = 0;
      is_released = true;
    }
  }
  if (!is_released) active->error = "some threads wait at a barrier that others never reach";
  return is_released;
}

void run_resident(std::vector<Fibre>& fibres, std::vector<Block>& blocks) {
  std::vector<unsigned> runnable;
  size_t done = 0;
  while (done < fibres.size()) {
    runnable.clear();
    for (unsigned i = 0; i < fibres.size(); ++i) {
      if (fibres[i].state == State::RUNNABLE) runnable.push_back(i);
    }
    if (runnable.empty() && !release(fibres, blocks)) return;
    // One pass over all runnable fibres, in an order drawn from the seed.
    for (size_t i = runnable.size(); active->shuffles && i > 1; --i) {
      std::swap(runnable[i - 1], runnable[draw() % i]);
    }
    for (unsigned i : runnable) {
      resume(fibres[i]);
      if (!active->error.empty()) return;
      done += fibres[i].state == State::DONE;
    }
  }
}

void make_block(Block& block, Fibre* fibres, uint64_t index, std::unique_ptr<Stack>* stacks) {
  const dim3 grid = active->request->grid, threads = active->request->block;
  block.index = {static_cast<unsigned>(index % grid.x),
                 static_cast<unsigned>(index / grid.x % grid.y),
                 static_cast<unsigned>(index / grid.x / grid.y)};
  block.warp_arrived.resize((active->threads + LANES - 1) / LANES);
  for (auto& slots : block.slots) slots.resize(block.warp_arrived.size() * LANES);
  for (unsigned t = 0; t < active->threads; ++t) {
    Fibre& fibre = fibres[t];
    fibre.thread = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
    fibre.rank = t;
    fibre.block = &block;
    fibre.stack = stacks[t].get();
  }
}

}  // namespace

void fail(const char* what) {
  char where[120];
  std::snprintf(where, sizeof where, " (block %u,%u,%u thread %u,%u,%u)", block_index.x,
                block_index.y, block_index.z, thread_index.x, thread_index.y, thread_index.z);
  active->error = std::string(what) + where;
  _longjmp(active->scheduler, 1);
}

int barrier(int line, int value) {
  Fibre* self = active->current;
  self->block->or_so_far |= value;
  ++self->block->arrived;
  self->state = State::AT_BARRIER;
  self->line = line;
  pause();
  return self->block->or_result;
}

void warp_exchange(int line, uint32_t value, uint32_t (&all)[LANES]) {
  Fibre* self = active->current;
  const unsigned warp = self->rank / LANES;
  uint32_t* slots = &self->block->slots[self->warp_operations++ & 1][warp * LANES];
  slots[self->rank % LANES] = value;
  ++self->block->warp_arrived[warp];
  self->state = State::AT_WARP;
  self->line = line;
  pause();
  memcpy(all, slots, sizeof all);
}

unsigned lane() { return active->current->rank % LANES; }

void maybe_pause() {
  if (active->shuffles && (draw() & 3) == 0) pause();
}

const char* launch(const Request& request) {
  static std::string error;
  static std::vector<std::unique_ptr<Stack>> stacks;
  Launch state{};
  state.request = &request;
  state.threads = request.block.x * request.block.y * request.block.z;
  state.random = request.seed * 0x9E3779B97F4A7C15ULL + 1;
  state.shuffles = request.seed != 0;
  active = &state;
  grid_size = request.grid;
  block_size = request.block;

  constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  struct sigaction ours {}, before[4];
  ours.sa_handler = on_signal;
  ours.sa_flags = SA_NODEFER;
  for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &ours, &before[i]);

  const uint64_t total = static_cast<uint64_t>(request.grid.x) * request.grid.y * request.grid.z;
  for (uint64_t first = 0; first < total && state.error.empty(); first += request.resident) {
    const uint64_t here = total - first < request.resident ? total - first : request.resident;
    std::vector<Block> blocks(here);
    std::vector<Fibre> fibres(here * state.threads);
    while (stacks.size() < fibres.size()) stacks.emplace_back(new Stack);
    if (request.shared_start != nullptr) {
      memset(request.shared_start, 0xCD, request.shared_stop - request.shared_start);
    }
    for (uint64_t b = 0; b < here; ++b) {
      make_block(blocks[b], &fibres[b * state.threads], first + b, &stacks[b * state.threads]);
    }
    run_resident(fibres, blocks);
  }
  if (!state.error.empty()) stacks.clear();  // their threads are not finished
  for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
  active = nullptr;
  error = state.error;
  return error.empty() ? nullptr : error.c_str();
}

}  // namespace shim
