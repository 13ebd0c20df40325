; The cache model of counted mode (counting.py): what the machine's first two caches would have
; done with the loads and stores of a kernel. It is a model: two levels, each set-associative with
; the line used longest ago pushed out, on one core, without prefetching. A store fetches its line
; like a load. The second cache sees what misses the first.
;
; struct model, words of 8 bytes:
;
;     0  ptr  first cache's tags     `ways` words a set, the line used last in front; 0 is empty
;     1  i64  its sets, less one     (a power of two)
;     2  i64  its ways
;     3  ptr  second cache's tags
;     4  i64  its sets, less one
;     5  i64  its ways
;     6  ptr  tgx_touch              counted kernels know neither by name: they are
;     7  ptr  tgx_touch_lanes        cached on disk, and called in another process
;     8  ptr  tgx_cold
;
; Addresses are those of a made-up memory, in which every kernel's buffers lie alike in every run.

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; Looks for a line in one set and moves it to the front, in one go: every tag moves down one place,
; until the one that was looked for, or the last, has been passed. Returns 1 if it was not there.
define internal i64 @seek(ptr %set, i64 %ways, i64 %tag) nounwind {
entry:
  br label %way
way:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %carried = phi i64 [ %tag, %entry ], [ %found, %next ]
  %at = getelementptr i64, ptr %set, i64 %i
  %found = load i64, ptr %at, align 8
  store i64 %carried, ptr %at, align 8
  %hit = icmp eq i64 %found, %tag
  br i1 %hit, label %out, label %next
next:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %ways
  br i1 %more, label %way, label %out
out:
  %missed = phi i64 [ 0, %way ], [ 1, %next ]
  ret i64 %missed
}

define internal i64 @look_up(ptr %cache, i64 %line) nounwind {
  %last.at = getelementptr i64, ptr %cache, i64 1
  %ways.at = getelementptr i64, ptr %cache, i64 2
  %tags = load ptr, ptr %cache, align 8
  %last = load i64, ptr %last.at, align 8
  %ways = load i64, ptr %ways.at, align 8
  %set = and i64 %line, %last
  %first = mul i64 %set, %ways
  %at = getelementptr i64, ptr %tags, i64 %first
  %tag = add i64 %line, 1
  %missed = call i64 @seek(ptr %at, i64 %ways, i64 %tag)
  ret i64 %missed
}

define internal void @touch_line(ptr %model, ptr %misses, i64 %line) nounwind {
entry:
  %missed = call i64 @look_up(ptr %model, i64 %line)
  %below = icmp ne i64 %missed, 0
  br i1 %below, label %second, label %out
second:
  %n1 = load i64, ptr %misses, align 8
  %n1.next = add i64 %n1, 1
  store i64 %n1.next, ptr %misses, align 8
  %cache = getelementptr i64, ptr %model, i64 3
  %missed2 = call i64 @look_up(ptr %cache, i64 %line)
  %n2.at = getelementptr i64, ptr %misses, i64 1
  %n2 = load i64, ptr %n2.at, align 8
  %n2.next = add i64 %n2, %missed2
  store i64 %n2.next, ptr %n2.at, align 8
  br label %out
out:
  ret void
}

; One load or store of `bytes` in a row: the lines it lies in. `misses` are two counters.
define void @tgx_touch(ptr %model, ptr %misses, i64 %address, i64 %bytes) nounwind {
entry:
  %first = lshr i64 %address, 6
  %end = add i64 %address, %bytes
  %top = sub i64 %end, 1
  %last = lshr i64 %top, 6
  br label %line
line:
  %i = phi i64 [ %first, %entry ], [ %i.next, %line ]
  call void @touch_line(ptr %model, ptr %misses, i64 %i)
  %i.next = add i64 %i, 1
  %more = icmp ule i64 %i.next, %last
  br i1 %more, label %line, label %out
out:
  ret void
}

; One load or store of `n` lanes, each with its own address, of which those happen whose bit is set
; in `mask`. Neighbours in one line look it up once.
define void @tgx_touch_lanes(ptr %model, ptr %misses, ptr %addresses, i64 %n, i64 %mask) nounwind {
entry:
  br label %lane
lane:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %before = phi i64 [ -1, %entry ], [ %seen, %next ]
  %shifted = lshr i64 %mask, %i
  %bit = and i64 %shifted, 1
  %set = icmp ne i64 %bit, 0
  br i1 %set, label %active, label %next
active:
  %at = getelementptr i64, ptr %addresses, i64 %i
  %address = load i64, ptr %at, align 8
  %line = lshr i64 %address, 6
  %same = icmp eq i64 %line, %before
  br i1 %same, label %next, label %look
look:
  call void @touch_line(ptr %model, ptr %misses, i64 %line)
  br label %next
next:
  %seen = phi i64 [ %before, %lane ], [ %before, %active ], [ %line, %look ]
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %n
  br i1 %more, label %lane, label %out
out:
  ret void
}

; Empties both caches when a launch begins, which is with chunk 0: every launch starts cold.
define void @tgx_cold(ptr %model, i64 %chunk) nounwind {
  %begins = icmp eq i64 %chunk, 0
  br i1 %begins, label %begin, label %out
begin:
  call void @empty(ptr %model)
  %second = getelementptr i64, ptr %model, i64 3
  call void @empty(ptr %second)
  br label %out
out:
  ret void
}

define internal void @empty(ptr %cache) nounwind {
  %last.at = getelementptr i64, ptr %cache, i64 1
  %ways.at = getelementptr i64, ptr %cache, i64 2
  %tags = load ptr, ptr %cache, align 8
  %last = load i64, ptr %last.at, align 8
  %ways = load i64, ptr %ways.at, align 8
  %sets = add i64 %last, 1
  %lines = mul i64 %sets, %ways
  %bytes = mul i64 %lines, 8
  call void @llvm.memset.p0.i64(ptr %tags, i8 0, i64 %bytes, i1 false)
  ret void
}
