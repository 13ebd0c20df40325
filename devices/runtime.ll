; The native half of TGX's runtime: it runs a list of kernels, on one thread or on several.
;
; A list is an array of jobs, one kernel launch each:
;
;     struct job { ptr kernel; ptr args; i64 chunks; }
;
; tgx_run walks it. A job of one chunk is called on the spot. A job of several is offered to the
; workers of the pool, and the caller works too; who takes which chunk is up to chance, what is in a
; chunk is not.
;
; struct pool, one cache line (64 bytes) for each group of fields that are written together:
;
;     0    i64 ticket     (number of the job << 32) | next chunk to take
;     64   i64 done       chunks of this job that are finished
;     128  job slot[2]    the job being worked on; even jobs in slot 0, odd jobs in slot 1
;     192  i64 sleeping   workers asleep, or about to be
;     200  i64 stop       set to make workers return
;     208  i64 spin       how many times a worker looks for work before it falls asleep
;     216  i64 alone      how many of the next jobs the caller does by itself, see run_shared
;     224  i64 backoff    what `alone` is set to when the workers are late again
;     232  i64 busy       a caller has the workers; others run their lists alone
;     256  pthread_mutex_t, room for 128 bytes
;     384  pthread_cond_t, room for 128 bytes
;
; The ticket makes this safe with a single compare-and-swap. A worker that read slot n&1 and then
; takes a ticket of job n knows that what it read was job n: the slot is not written again before
; job n+2, and job n+2 does not start before every chunk of job n was taken and finished.

%job = type { ptr, ptr, i64 }

declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @clock_gettime(i32, ptr)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
{declare_pause}

; Takes chunks of the current job and runs them, until none is left. Returns how many it ran.
define internal i64 @take_chunks(ptr %pool) nounwind {
entry:
  %done = getelementptr i8, ptr %pool, i64 64
  %slots = getelementptr i8, ptr %pool, i64 128
  br label %next
next:
  %ran = phi i64 [ 0, %entry ], [ %ran, %lost ], [ %ran.more, %run ]
  %ticket = load atomic i64, ptr %pool acquire, align 8
  %number = lshr i64 %ticket, 32
  %parity = and i64 %number, 1
  %slot = getelementptr %job, ptr %slots, i64 %parity
  %args.at = getelementptr i8, ptr %slot, i64 8
  %chunks.at = getelementptr i8, ptr %slot, i64 16
  %kernel = load atomic ptr, ptr %slot monotonic, align 8
  %args = load atomic ptr, ptr %args.at monotonic, align 8
  %chunks = load atomic i64, ptr %chunks.at monotonic, align 8
  %chunk = and i64 %ticket, 4294967295
  %left = icmp ult i64 %chunk, %chunks
  br i1 %left, label %try, label %out
try:
  %taken = add i64 %ticket, 1
  %swap = cmpxchg ptr %pool, i64 %ticket, i64 %taken acq_rel acquire, align 8
  %won = extractvalue { i64, i1 } %swap, 1
  br i1 %won, label %run, label %lost
lost:
  br label %next
run:
  call void %kernel(ptr %args, i64 %chunk)
  %before = atomicrmw add ptr %done, i64 1 release, align 8
  %ran.more = add i64 %ran, 1
  br label %next
out:
  ret i64 %ran
}

; One worker's life: look for work for a while, then sleep until the next job is offered.
define void @tgx_worker(ptr %pool) nounwind {
entry:
  %sleeping = getelementptr i8, ptr %pool, i64 192
  %stop = getelementptr i8, ptr %pool, i64 200
  %spin.at = getelementptr i8, ptr %pool, i64 208
  %mutex = getelementptr i8, ptr %pool, i64 256
  %cond = getelementptr i8, ptr %pool, i64 384
  br label %work
work:
  %seen = load atomic i64, ptr %pool acquire, align 8
  %job.seen = lshr i64 %seen, 32
  %ran = call i64 @take_chunks(ptr %pool)
  %spins = load atomic i64, ptr %spin.at monotonic, align 8
  br label %look
look:
  %i = phi i64 [ 0, %work ], [ %i.next, %pause ]
  %ticket = load atomic i64, ptr %pool acquire, align 8
  %job.now = lshr i64 %ticket, 32
  %new = icmp ne i64 %job.now, %job.seen
  br i1 %new, label %work, label %patience
patience:
  %tired = icmp uge i64 %i, %spins
  br i1 %tired, label %doze, label %pause
pause:
  {pause}
  %i.next = add i64 %i, 1
  br label %look
doze:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %s0 = atomicrmw add ptr %sleeping, i64 1 seq_cst, align 8
  br label %check
check:                                            ; between the offer and the sleep nothing is lost:
  %t = load atomic i64, ptr %pool seq_cst, align 8 ; the caller looks at `sleeping` after offering,
  %job.then = lshr i64 %t, 32                      ; we look at the ticket after counting ourselves
  %came = icmp ne i64 %job.then, %job.seen
  %halt = load atomic i64, ptr %stop acquire, align 8
  %halted = icmp ne i64 %halt, 0
  %awake = or i1 %came, %halted
  br i1 %awake, label %rise, label %sleep
sleep:
  %w = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %check
rise:
  %s1 = atomicrmw sub ptr %sleeping, i64 1 seq_cst, align 8
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br i1 %halted, label %out, label %work
out:
  ret void
}

; Wakes the workers that sleep.
define void @tgx_wake(ptr %pool) nounwind {
  %sleeping = getelementptr i8, ptr %pool, i64 192
  %mutex = getelementptr i8, ptr %pool, i64 256
  %cond = getelementptr i8, ptr %pool, i64 384
  %n = load atomic i64, ptr %sleeping seq_cst, align 8
  %any = icmp ne i64 %n, 0
  br i1 %any, label %wake, label %out
wake:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %b = call i32 @pthread_cond_broadcast(ptr %cond)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %out
out:
  ret void
}

; Offers a job to the pool, works on it, and returns when all of it is done.
;
; On a busy machine a worker may lose its CPU in the middle of a chunk, and the caller then waits for
; it: two threads are slower than one. So the caller watches how long it waits after its own last
; chunk. More than two chunks' time (and 50 us) is late: the next jobs are done alone, 16 of them,
; then 32, up to 4096; workers that are in time again are trusted twice as soon.
define internal void @run_shared(ptr %pool, ptr %kernel, ptr %args, i64 %chunks) nounwind {
entry:
  %done = getelementptr i8, ptr %pool, i64 64
  %slots = getelementptr i8, ptr %pool, i64 128
  %alone = getelementptr i8, ptr %pool, i64 216
  %backoff = getelementptr i8, ptr %pool, i64 224
  %old = load atomic i64, ptr %pool monotonic, align 8
  %number = lshr i64 %old, 32
  %number.next = add i64 %number, 1
  %parity = and i64 %number.next, 1
  %slot = getelementptr %job, ptr %slots, i64 %parity
  %args.at = getelementptr i8, ptr %slot, i64 8
  %chunks.at = getelementptr i8, ptr %slot, i64 16
  store atomic ptr %kernel, ptr %slot monotonic, align 8
  store atomic ptr %args, ptr %args.at monotonic, align 8
  store atomic i64 %chunks, ptr %chunks.at monotonic, align 8
  store atomic i64 0, ptr %done monotonic, align 8
  %fresh = shl i64 %number.next, 32
  store atomic i64 %fresh, ptr %pool seq_cst, align 8
  call void @tgx_wake(ptr %pool)
  %t0 = call i64 @tgx_clock()
  %ran = call i64 @take_chunks(ptr %pool)
  %t1 = call i64 @tgx_clock()
  br label %wait
wait:
  %finished = load atomic i64, ptr %done acquire, align 8
  %all = icmp uge i64 %finished, %chunks
  br i1 %all, label %judge, label %pause
pause:
  {pause}
  br label %wait
judge:
  %t2 = call i64 @tgx_clock()
  %waited = sub i64 %t2, %t1
  %worked = sub i64 %t1, %t0
  %some = call i64 @llvm.umax.i64(i64 %ran, i64 1)
  %a.chunk = udiv i64 %worked, %some
  %two = shl i64 %a.chunk, 1
  %limit = add i64 %two, 50000
  %late = icmp ugt i64 %waited, %limit
  %b = load i64, ptr %backoff, align 8
  br i1 %late, label %distrust, label %trust
distrust:
  %b2 = shl i64 %b, 1
  %b16 = call i64 @llvm.umax.i64(i64 %b2, i64 16)
  %b.more = call i64 @llvm.umin.i64(i64 %b16, i64 4096)
  store i64 %b.more, ptr %backoff, align 8
  store i64 %b.more, ptr %alone, align 8
  ret void
trust:
  %b.less = lshr i64 %b, 1
  store i64 %b.less, ptr %backoff, align 8
  ret void
}

; Nanoseconds of the clock that Python's time.perf_counter reads.
define i64 @tgx_clock() nounwind {
  %ts = alloca [2 x i64], align 8
  %r = call i32 @clock_gettime(i32 {clock}, ptr %ts)
  %ns.at = getelementptr i64, ptr %ts, i64 1
  %s = load i64, ptr %ts, align 8
  %ns = load i64, ptr %ns.at, align 8
  %billions = mul i64 %s, 1000000000
  %t = add i64 %billions, %ns
  ret i64 %t
}

; Runs `n` jobs in order. With a pool, if no other caller has it, jobs of several chunks are shared.
; With `stamps` (n + 1 words), writes the clock before the first job and after each.
define void @tgx_run(ptr %jobs, i64 %n, ptr %pool, ptr %stamps) nounwind {
entry:
  %none = icmp eq ptr %pool, null
  %busy = getelementptr i8, ptr %pool, i64 232
  br i1 %none, label %begin, label %claim
claim:
  %claimed = cmpxchg ptr %busy, i64 0, i64 1 acq_rel acquire, align 8
  %got = extractvalue { i64, i1 } %claimed, 1
  br label %begin
begin:
  %ours = phi i1 [ false, %entry ], [ %got, %claim ]
  %alone = xor i1 %ours, true
  %timed = icmp ne ptr %stamps, null
  br i1 %timed, label %first, label %loop
first:
  %t0 = call i64 @tgx_clock()
  store i64 %t0, ptr %stamps, align 8
  br label %loop
loop:
  %i = phi i64 [ 0, %begin ], [ 0, %first ], [ %i.next, %next ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %job, label %finish
job:
  %job.at = getelementptr %job, ptr %jobs, i64 %i
  %args.at = getelementptr i8, ptr %job.at, i64 8
  %chunks.at = getelementptr i8, ptr %job.at, i64 16
  %kernel = load ptr, ptr %job.at, align 8
  %args = load ptr, ptr %args.at, align 8
  %chunks = load i64, ptr %chunks.at, align 8
  %one = icmp ule i64 %chunks, 1
  %here = or i1 %one, %alone
  br i1 %here, label %serial, label %ask
ask:
  %left.at = getelementptr i8, ptr %pool, i64 216
  %left = load i64, ptr %left.at, align 8
  %trusted = icmp eq i64 %left, 0
  br i1 %trusted, label %shared, label %spare
spare:
  %left.less = sub i64 %left, 1
  store i64 %left.less, ptr %left.at, align 8
  br label %serial
serial:
  %c = phi i64 [ 0, %job ], [ 0, %spare ], [ %c.next, %serial ]
  call void %kernel(ptr %args, i64 %c)
  %c.next = add i64 %c, 1
  %again = icmp ult i64 %c.next, %chunks
  br i1 %again, label %serial, label %after
shared:
  call void @run_shared(ptr %pool, ptr %kernel, ptr %args, i64 %chunks)
  br label %after
after:
  %i.next = add i64 %i, 1
  br i1 %timed, label %stamp, label %next
stamp:
  %t = call i64 @tgx_clock()
  %stamp.at = getelementptr i64, ptr %stamps, i64 %i.next
  store i64 %t, ptr %stamp.at, align 8
  br label %next
next:
  br label %loop
finish:
  br i1 %ours, label %release, label %out
release:
  store atomic i64 0, ptr %busy release, align 8
  br label %out
out:
  ret void
}

; A copy between two buffers, in the shape of a kernel: args are destination, source, bytes.
define void @tgx_copy(ptr %args, i64 %chunk) nounwind {
  %source.at = getelementptr i64, ptr %args, i64 1
  %bytes.at = getelementptr i64, ptr %args, i64 2
  %destination = load ptr, ptr %args, align 8
  %source = load ptr, ptr %source.at, align 8
  %bytes = load i64, ptr %bytes.at, align 8
  call void @llvm.memmove.p0.p0.i64(ptr %destination, ptr %source, i64 %bytes, i1 false)
  ret void
}
