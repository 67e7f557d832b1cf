" Run by mlx-gardener in Vim or Neovim: look at the editor and at llama.vim, or let llama.vim ask for one completion.
" What was found goes to the file that the environment names, as JSON.

function! s:look() abort
  let l:version = has('nvim') ? matchstr(execute('version'), 'NVIM v\zs[0-9A-Za-z.+-]*')
        \ : (v:version / 100) .. '.' .. (v:version % 100)
  return {
        \ 'version': l:version,
        \ 'number': v:version,
        \ 'extendnew': exists('*extendnew'),
        \ 'plugin': get(globpath(&runtimepath, 'autoload/llama.vim', 0, 1), 0, ''),
        \ }
endfunction

function! s:complete() abort
  if !empty($MLX_GARDENER_VIM_PLUGIN)
    execute 'set runtimepath+=' .. fnameescape($MLX_GARDENER_VIM_PLUGIN)
  endif
  if !exists('g:loaded_mlx_gardener') || g:loaded_mlx_gardener !=# $MLX_GARDENER_VIM_FILE
    execute 'source' fnameescape($MLX_GARDENER_VIM_FILE)
  endif
  if !exists('g:cache_data')
    runtime plugin/llama.vim
  endif
  let l:endpoint = get(get(g:, 'llama_config', {}), 'endpoint_fim', '')
  let l:complaints = filter(split(execute('messages'), "\n"), {_, line -> line =~# '^llama.vim:'})
  enew
  call setline(1, ['def add(first, second):', '    return ', '', '', 'print(add(1, 2))'])
  call cursor(2, 12)
  let g:cache_data = {}
  call llama#fim(11, 2, v:false, [], v:false)
  for l:round in range(600)
    if !empty(g:cache_data)
      break
    endif
    sleep 100m
  endfor
  return {'endpoint': l:endpoint, 'complaints': l:complaints, 'answers': values(g:cache_data)[:0], 'error': ''}
endfunction

try
  let s:result = $MLX_GARDENER_VIM_TASK ==# 'look' ? s:look() : s:complete()
catch
  let s:result = {'endpoint': get(get(g:, 'llama_config', {}), 'endpoint_fim', ''), 'complaints': [], 'answers': [],
        \ 'error': v:exception}
endtry
call writefile([json_encode(s:result)], $MLX_GARDENER_VIM_RESULT)
qall!
