; What checked kernels call (instrument.py writes the calls, checking.py reads the answers).
;
; A run, in 64-bit words: what failed first (state, launch, site, chunk, offset, what, detail).
; A launch: the run, its number, ...; behind the tags of its arguments, a note for each site.

; Records a failure, unless there is one.
define void @tgx_fail(ptr %launch, i64 %chunk, i64 %site, i64 %what, i64 %offset, i64 %detail) nounwind {
  %run = load ptr, ptr %launch, align 8
  %swap = cmpxchg ptr %run, i64 0, i64 1 acq_rel monotonic, align 8
  %won = extractvalue { i64, i1 } %swap, 1
  br i1 %won, label %write, label %out
write:
  %number.at = getelementptr i64, ptr %launch, i64 1
  %number = load i64, ptr %number.at, align 8
  %launch.to = getelementptr i64, ptr %run, i64 1
  %site.to = getelementptr i64, ptr %run, i64 2
  %chunk.to = getelementptr i64, ptr %run, i64 3
  %offset.to = getelementptr i64, ptr %run, i64 4
  %what.to = getelementptr i64, ptr %run, i64 5
  %detail.to = getelementptr i64, ptr %run, i64 6
  store i64 %number, ptr %launch.to, align 8
  store i64 %site, ptr %site.to, align 8
  store i64 %chunk, ptr %chunk.to, align 8
  store i64 %offset, ptr %offset.to, align 8
  store i64 %what, ptr %what.to, align 8
  store i64 %detail, ptr %detail.to, align 8
  br label %out
out:
  ret void
}

; The tags of `lanes` elements of `item` bytes: one byte of tag for each byte of a buffer, 0 for
; never written, 1 for written, 2 + c for written in this launch by chunk c. Lanes lie in a row from
; `offset` on, or at `offsets`; a bit of `mask` says whether a lane is meant.
;
; Writes to `out`, for each lane, the number of the site + 1 where it was never written, else 0; and
; notes the first such place, + 1. Returns 1 where another chunk wrote it in this launch: that is a race.
define i64 @tgx_loaded(ptr %launch, i64 %chunk, i64 %site, ptr %tags, ptr %offsets, i64 %offset, i64 %item, i64 %lanes, i64 %mask, ptr %out, i64 %notes) nounwind {
entry:
  %row = icmp eq ptr %offsets, null
  %untagged = icmp eq ptr %tags, null
  %mine = add i64 %chunk, 2
  %blame = add i64 %site, 1
  %blame32 = trunc i64 %blame to i32
  br label %lane
lane:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %to = getelementptr i32, ptr %out, i64 %i
  store i32 0, ptr %to, align 4
  %bit = lshr i64 %mask, %i
  %on = trunc i64 %bit to i1
  %off = xor i1 %on, true
  %skip = or i1 %off, %untagged
  br i1 %skip, label %next, label %where
where:
  br i1 %row, label %near, label %far
near:
  %step = mul i64 %i, %item
  %here = add i64 %offset, %step
  br label %look
far:
  %there.at = getelementptr i64, ptr %offsets, i64 %i
  %there = load i64, ptr %there.at, align 8
  br label %look
look:
  %place = phi i64 [ %here, %near ], [ %there, %far ]
  %tag.at = getelementptr i8, ptr %tags, i64 %place
  %tag8 = load i8, ptr %tag.at, align 1
  %tag = zext i8 %tag8 to i64
  %never = icmp eq i64 %tag, 0
  br i1 %never, label %unwritten, label %whose
unwritten:
  store i32 %blame32, ptr %to, align 4
  %note.base = getelementptr i64, ptr %launch, i64 %notes
  %note.at = getelementptr i64, ptr %note.base, i64 %site
  %noted = load i64, ptr %note.at, align 8
  %first = icmp eq i64 %noted, 0
  %place.one = add i64 %place, 1
  %note = select i1 %first, i64 %place.one, i64 %noted
  store i64 %note, ptr %note.at, align 8
  br label %next
whose:
  %new = icmp uge i64 %tag, 2
  %foreign = icmp ne i64 %tag, %mine
  %race = and i1 %new, %foreign
  br i1 %race, label %bad, label %next
bad:
  %other = sub i64 %tag, 2
  call void @tgx_fail(ptr %launch, i64 %chunk, i64 %site, i64 6, i64 %place, i64 %other)
  ret i64 1
next:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %lanes
  br i1 %more, label %lane, label %done
done:
  ret i64 0
}

; Sets the tags of elements that are stored. Returns 1 where another chunk wrote one in this launch.
define i64 @tgx_stored(ptr %launch, i64 %chunk, i64 %site, ptr %tags, ptr %offsets, i64 %offset, i64 %item, i64 %lanes, i64 %mask, ptr %out, i64 %notes) nounwind {
entry:
  %row = icmp eq ptr %offsets, null
  %untagged = icmp eq ptr %tags, null
  %mine = add i64 %chunk, 2
  %mine8 = trunc i64 %mine to i8
  br label %lane
lane:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %bit = lshr i64 %mask, %i
  %on = trunc i64 %bit to i1
  %off = xor i1 %on, true
  %skip = or i1 %off, %untagged
  br i1 %skip, label %next, label %where
where:
  br i1 %row, label %near, label %far
near:
  %step = mul i64 %i, %item
  %here = add i64 %offset, %step
  br label %look
far:
  %there.at = getelementptr i64, ptr %offsets, i64 %i
  %there = load i64, ptr %there.at, align 8
  br label %look
look:
  %place = phi i64 [ %here, %near ], [ %there, %far ]
  %tag.at = getelementptr i8, ptr %tags, i64 %place
  %tag8 = load i8, ptr %tag.at, align 1
  %tag = zext i8 %tag8 to i64
  %new = icmp uge i64 %tag, 2
  %foreign = icmp ne i64 %tag, %mine
  %race = and i1 %new, %foreign
  br i1 %race, label %bad, label %set
set:
  %b = phi i64 [ 0, %look ], [ %b.next, %set ]
  %at = getelementptr i8, ptr %tag.at, i64 %b
  store i8 %mine8, ptr %at, align 1
  %b.next = add i64 %b, 1
  %rest = icmp ult i64 %b.next, %item
  br i1 %rest, label %set, label %next
bad:
  %other = sub i64 %tag, 2
  call void @tgx_fail(ptr %launch, i64 %chunk, i64 %site, i64 5, i64 %place, i64 %other)
  ret i64 1
next:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %lanes
  br i1 %more, label %lane, label %done
done:
  ret i64 0
}

; Is there a NaN (1) or an infinity (2) among `count` floats? `kind`: 0 half, 1 bfloat16, 2 float,
; 3 double. The exponent of both is all ones; a NaN has other bits too.
define i64 @tgx_scan(ptr %data, i64 %count, i64 %kind) nounwind {
entry:
  switch i64 %kind, label %doubles [ i64 0, label %halves
                                     i64 1, label %shorts
                                     i64 2, label %floats ]
halves:
  %h = call i64 @scan16(ptr %data, i64 %count, i16 31744)
  ret i64 %h
shorts:
  %s = call i64 @scan16(ptr %data, i64 %count, i16 32640)
  ret i64 %s
floats:
  %f = call i64 @scan32(ptr %data, i64 %count)
  ret i64 %f
doubles:
  %d = call i64 @scan64(ptr %data, i64 %count)
  ret i64 %d
}

define internal i64 @scan16(ptr %data, i64 %count, i16 %inf) nounwind {
entry:
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %i.next, %each ]
  %found = phi i64 [ 0, %entry ], [ %both, %each ]
  %at = getelementptr i16, ptr %data, i64 %i
  %x = load i16, ptr %at, align 2
  %bits = and i16 %x, 32767
  %nan = icmp ugt i16 %bits, %inf
  %is.inf = icmp eq i16 %bits, %inf
  %one = zext i1 %nan to i64
  %two = select i1 %is.inf, i64 2, i64 0
  %new = or i64 %one, %two
  %both = or i64 %found, %new
  %i.next = add nuw i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %each, label %out
out:
  ret i64 %both
}

define internal i64 @scan32(ptr %data, i64 %count) nounwind {
entry:
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %i.next, %each ]
  %found = phi i64 [ 0, %entry ], [ %both, %each ]
  %at = getelementptr i32, ptr %data, i64 %i
  %x = load i32, ptr %at, align 4
  %bits = and i32 %x, 2147483647
  %nan = icmp ugt i32 %bits, 2139095040
  %is.inf = icmp eq i32 %bits, 2139095040
  %one = zext i1 %nan to i64
  %two = select i1 %is.inf, i64 2, i64 0
  %new = or i64 %one, %two
  %both = or i64 %found, %new
  %i.next = add nuw i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %each, label %out
out:
  ret i64 %both
}

define internal i64 @scan64(ptr %data, i64 %count) nounwind {
entry:
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %i.next, %each ]
  %found = phi i64 [ 0, %entry ], [ %both, %each ]
  %at = getelementptr i64, ptr %data, i64 %i
  %x = load i64, ptr %at, align 8
  %bits = and i64 %x, 9223372036854775807
  %nan = icmp ugt i64 %bits, 9218868437227405312
  %is.inf = icmp eq i64 %bits, 9218868437227405312
  %one = zext i1 %nan to i64
  %two = select i1 %is.inf, i64 2, i64 0
  %new = or i64 %one, %two
  %both = or i64 %found, %new
  %i.next = add nuw i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %each, label %out
out:
  ret i64 %both
}
