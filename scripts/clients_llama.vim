" Run by scripts/clients in Vim or Neovim: llama.vim itself asks for a completion, which is taken, and asks again behind it.

function! s:ask() abort
  let l:known = len(g:cache_data)
  call llama#fim(col('.') - 1, line('.'), v:false, [], v:false)
  for l:round in range(3000)
    if len(g:cache_data) > l:known
      return
    endif
    sleep 100m
  endfor
  throw 'no completion came'
endfunction

function! s:contents() abort
  return map(values(g:cache_data), {_, raw -> json_decode(raw)['content']})
endfunction

try
  execute 'set runtimepath+=' .. fnameescape($PLUGIN)
  execute 'source' fnameescape($SETTINGS)
  runtime plugin/llama.vim
  enew
  let s:lines = map(range(60), {at, _ -> at % 2 ? '    return ' .. at : 'def number_' .. at .. '():'})
  call setline(1, s:lines + ['def add(first, second):', '    return ', '', '', 'print(add(1, 2))'])
  call cursor(62, 1)
  startinsert!
  call cursor(62, 12)
  let g:cache_data = {}
  call s:ask()
  let s:shown = s:contents()[0]
  call llama#fim_hide()
  let s:first = split(s:shown, "\n", 1)
  call setline(62, getline(62) .. s:first[0])
  call cursor(62, col([62, '$']))
  call s:ask()
  let s:result = {'shown': s:shown, 'taken': getline(62), 'error': ''}
catch
  let s:result = {'error': v:exception .. ' at ' .. v:throwpoint}
endtry
call writefile([json_encode(s:result)], $RESULT)
qall!
